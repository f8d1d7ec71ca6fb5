"""What watching a model found: judged windows, incidents and messages."""
