"""Train, sweep, register and serve PyTorch models on one Ray cluster.

The names below are the whole public API. Each is imported when first used, so that importing
raymlops loads no ray, torch or mlflow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raymlops.version import __version__ as __version__

if TYPE_CHECKING:
    from raymlops.arrays import Column as Column
    from raymlops.callback import Callback as Callback
    from raymlops.config.load import load as load
    from raymlops.config.schema import ProjectSpec as ProjectSpec
    from raymlops.errors import RaymlopsError as RaymlopsError
    from raymlops.lifecycle.comparison.compare import compare as compare
    from raymlops.lifecycle.deploy import deploy as deploy
    from raymlops.lifecycle.deploy import promote as promote
    from raymlops.lifecycle.loop.retrain import retrain as retrain
    from raymlops.lifecycle.pipeline import pipeline as pipeline
    from raymlops.lifecycle.registration.gate import gate as gate
    from raymlops.lifecycle.registration.register import register as register
    from raymlops.lifecycle.rollback import rollback as rollback
    from raymlops.lifecycle.sweeps.handle import Sweep as Sweep
    from raymlops.lifecycle.sweeps.handle import attach as attach
    from raymlops.lifecycle.sweeps.handle import sweep as sweep
    from raymlops.lifecycle.train import train as train
    from raymlops.lifecycle.watch.drift import drift as drift
    from raymlops.recipe import RecipeBase as RecipeBase
    from raymlops.recipe import RecipeConfig as RecipeConfig
    from raymlops.serving.client.async_client import AsyncClient as AsyncClient
    from raymlops.serving.client.client import Client as Client
    from raymlops.signature import Signature as Signature
    from raymlops.splits import Splits as Splits


_HOMES = {
    "AsyncClient": "raymlops.serving.client.async_client",
    "Callback": "raymlops.callback",
    "Client": "raymlops.serving.client.client",
    "Column": "raymlops.arrays",
    "ProjectSpec": "raymlops.config.schema",
    "RaymlopsError": "raymlops.errors",
    "RecipeBase": "raymlops.recipe",
    "RecipeConfig": "raymlops.recipe",
    "Signature": "raymlops.signature",
    "Splits": "raymlops.splits",
    "Sweep": "raymlops.lifecycle.sweeps.handle",
    "attach": "raymlops.lifecycle.sweeps.handle",
    "compare": "raymlops.lifecycle.comparison.compare",
    "deploy": "raymlops.lifecycle.deploy",
    "drift": "raymlops.lifecycle.watch.drift",
    "gate": "raymlops.lifecycle.registration.gate",
    "load": "raymlops.config.load",
    "pipeline": "raymlops.lifecycle.pipeline",
    "promote": "raymlops.lifecycle.deploy",
    "register": "raymlops.lifecycle.registration.register",
    "retrain": "raymlops.lifecycle.loop.retrain",
    "rollback": "raymlops.lifecycle.rollback",
    "sweep": "raymlops.lifecycle.sweeps.handle",
    "train": "raymlops.lifecycle.train",
}

__all__ = list(_HOMES)


def load_ipython_extension(shell: Any) -> None:
    """Add the cell magic ``%%raymlops FILE.py`` to a notebook: ``%load_ext raymlops``."""
    from raymlops.notebook import add_magic

    add_magic(shell)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raymlops' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
