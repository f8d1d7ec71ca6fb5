"""The loop of a model: from a reason to retrain it to a version that is promoted, or taken back."""
