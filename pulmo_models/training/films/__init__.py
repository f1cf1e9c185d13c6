"""Training and evaluation of the radiograph classifiers: `pulmo-train cxr`."""
