"""Batches that other processes read ahead of the training."""
