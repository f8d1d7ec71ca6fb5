"""Training: data, the loop, its checkpoints and its record."""
