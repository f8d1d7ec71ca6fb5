"""What every test may use: the importable fixture recipes, a home of its own, and an MLflow database that is ready."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fake_s3 import FakeS3

# Test modules are imported by path and workers import by name: what a worker needs lives in tests/fixtures.
sys.path.insert(0, str(Path(__file__).parent / "fixtures"))


@pytest.fixture(scope="session", autouse=True)
def raymlops_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep whatever a test leaves to the defaults out of the user's own home."""
    home = tmp_path_factory.mktemp("raymlops-home")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAYMLOPS_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty MLflow database; making one takes seconds, copying it none."""
    from raymlops.tracking.client import Tracker

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Tracker(f"sqlite:///{path}").check()
    return path


@pytest.fixture
def storage_path(mlflow_database: Path, tmp_path: Path) -> Path:
    """Return a ``storage.path`` whose MLflow database is ready."""
    folder = tmp_path / "storage"
    folder.mkdir()
    shutil.copy(mlflow_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    """Yield an object store on loopback, for pyarrow's own S3 client."""
    from fake_s3 import fake_s3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    with fake_s3() as server:
        yield server
