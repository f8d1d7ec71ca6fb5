"""Airflow's side of raymlops: commands as jobs of a Ray cluster."""

from __future__ import annotations


def get_provider_info() -> dict[str, object]:
    """Return what Airflow lists of a provider."""
    return {
        "package-name": "raymlops-airflow",
        "name": "raymlops",
        "description": "Commands as jobs of a Ray cluster: submitted once, followed, stopped.",
    }
