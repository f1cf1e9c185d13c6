"""What samples are made of: series, nodules and phantoms, and how nodules come into the lungs of others."""
