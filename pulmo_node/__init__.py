"""The service: receive, assemble, analyse, encode, deliver; one file a stage, in the order of the data."""
