"""``nn.Module`` definitions only, one architecture a file; attribute names are the keys of published checkpoints."""
