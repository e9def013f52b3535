"""`python -m osmotic` is the command `osmotic`."""

from osmotic.cli import main

main()
