"""One MLflow in a SQLite file for all tests of the registry."""

from __future__ import annotations

import shutil

import pytest
from tiny_bundle import tiny_contents

from raymlops.bundle.write import write_bundle
from raymlops.tracking.client import Tracker


@pytest.fixture(scope="session")
def tracker(tmp_path_factory, mlflow_database) -> Tracker:
    """Return a tracker of a store of its own."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(mlflow_database, folder / "mlflow.db")
    return Tracker(f"sqlite:///{folder}/mlflow.db", artifacts=str(folder / "artifacts"))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """Return a bundle of the tiny recipe."""
    return write_bundle(tmp_path_factory.mktemp("store"), tiny_contents())


@pytest.fixture
def run_id(tracker) -> str:
    """Return a new run."""
    return tracker.start_run("tiny", name="tiny", tags={})
