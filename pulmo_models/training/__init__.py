"""Training of the shipped networks: phantoms, patches, losses, loops, evaluation."""
