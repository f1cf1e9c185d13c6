"""What `make` runs beside the node."""
