"""``nn.Module`` definitions only, one architecture a file; names of attributes are the keys of published checkpoints."""
