"""Names of applications, deployments and routes on Serve.

A version is an application of its own, ``NAME--v7``; its route is ``/models/NAME``.
"""

from __future__ import annotations

DEPLOYMENT = "front"
"""Name of the one Serve deployment in each of our applications."""

MODEL_IMPORT_PATH = "raymlops.serving.apps:model_app"

INDEX_IMPORT_PATH = "raymlops.serving.apps:index_app"

INDEX_APP = "raymlops"
"""gRPC clients send it as ``application``: it is stable, while a champion's application changes."""
GUARD = "/-/guard"
"""End of every path at which the guard answers for itself, so that operators see that it is in force."""
ROUTES = "/-/routes"
"""Where Serve's proxies list all applications, also those that require a key."""


def app_name(name: str, version: int) -> str:
    """Return the name of a version's application: ``flights--v7``."""
    return f"{name}--v{version}"


def route_of(name: str) -> str:
    """Return the route that a model's champion holds."""
    return f"/models/{name}"
