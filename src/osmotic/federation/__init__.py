"""The federation: the server's round loop, a client's share of it, the links between them, and the books."""
