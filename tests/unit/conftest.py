"""Projects on the tiny recipe, state databases, and the two kinds of places that checkpoints are in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from raymlops.config.load import load_data
from raymlops.project import Project, bind
from raymlops.state.store import State
from raymlops.tracking.client import Tracker, tracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def tiny_project(tmp_path: Path) -> Callable[..., Project]:
    """Return a factory: keyword arguments are fields of ``train``, ``config`` is the recipe's, ``more`` the rest."""

    def make(
        *,
        recipe: str = "tiny:Tiny",
        config: dict[str, Any] | None = None,
        more: dict[str, Any] | None = None,
        **train: Any,
    ) -> Project:
        section = {"epochs": 2, "batch_size": 64, "lr": 1e-2, "threads_per_worker": 1} | train
        data = {
            "project": {"name": "tiny"},
            "recipe": {"import": recipe, "config": {"train_rows": 300, "validation_rows": 101, **(config or {})}},
            "train": section,
            "storage": {"path": str(tmp_path / "storage")},
        }
        return bind(load_data(data | (more or {})))

    return make


@pytest.fixture
def project(tiny_project: Callable[..., Project], storage_path: Path) -> Project:
    """Return the tiny project, where an MLflow database is ready."""
    del storage_path
    return tiny_project()


@pytest.fixture
def mlflow(project: Project) -> Tracker:
    """Return the MLflow of the project."""
    return tracker(project.spec)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return the URL of a state database that does not exist yet."""
    return f"sqlite:///{tmp_path}/state.db"


@pytest.fixture
def state(url: str, tmp_path: Path, copied_state: Callable[[Path], Path]) -> Iterator[State]:
    """Return the opened state database of ``url``."""
    copied_state(tmp_path)
    with State.open(url) as opened:
        yield opened


@pytest.fixture(params=["path", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a folder of checkpoints, on the disk and in the object store."""
    if request.param == "s3":
        return request.getfixturevalue("s3").uri("bucket/run/checkpoints")
    return f"{tmp_path}/run/checkpoints"
