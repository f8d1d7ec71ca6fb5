"""What a retraining runs in a Ray job of its own, and the start of the controller that submits it."""
