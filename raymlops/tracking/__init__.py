"""Tracking: what a run was, written to MLflow by explicit URI."""
