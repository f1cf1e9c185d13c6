"""`python -m pulmo_node`."""

from pulmo_node.cli import main

main()
