"""What server, clients, methods and engines say to each other, and the rules that all of them follow."""
