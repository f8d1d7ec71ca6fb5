"""Inference protocols: each turns bytes into columns and columns into bytes."""
