"""Judges: the verdict on drift, quality, sequential tests."""
