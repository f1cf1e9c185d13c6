"""States, events and values of the node. Standard library only; no input or output."""
