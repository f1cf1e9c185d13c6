"""The commands of `pulmo-train`."""
