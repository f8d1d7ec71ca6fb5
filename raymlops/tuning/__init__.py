"""Sweeps: many trials over a search space, one Optuna study, one parent run in MLflow."""
