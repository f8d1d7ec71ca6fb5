"""Train, sweep, register and serve PyTorch models on one Ray cluster."""
