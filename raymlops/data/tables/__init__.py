"""What tables hold, as numpy arrays."""
