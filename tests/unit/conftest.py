"""Projects on the tiny recipe, state databases that are made quickly, both places of checkpoints, and a quick disk."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import uuid
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from raymlops.config.load import load_data
from raymlops.project import Project, bind
from raymlops.state import database
from raymlops.state.migrate import migrate
from raymlops.state.store import State
from raymlops.tracking.client import Tracker, tracker
from raymlops.training.runs import mlflow_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def quick_disk() -> Iterator[None]:
    """Let no test wait for the disk: a process that is killed loses nothing of what it wrote, a machine might."""
    sa.event.listen(sa.Pool, "checkout", _quick)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield
    sa.event.remove(sa.Pool, "checkout", _quick)


@pytest.fixture
def slow_disk() -> Iterator[None]:
    """Leave databases that this test opens as they are."""
    sa.event.remove(sa.Pool, "checkout", _quick)
    yield
    sa.event.listen(sa.Pool, "checkout", _quick)


def _quick(connection: Any, record: Any, _proxy: Any) -> None:
    if isinstance(connection, sqlite3.Connection) and "quick" not in record.info:
        with suppress(sqlite3.Error):  # a damaged file, as its test will say
            connection.execute("PRAGMA synchronous = OFF").close()
        record.info["quick"] = True


@pytest.fixture(scope="session", autouse=True)
def quick_migration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make a new state database as Alembic made the first one, in a tenth of the time, with an identity of its own."""
    path = tmp_path_factory.mktemp("state") / "state.db"
    State.open(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as connection:
        _, *statements, _ = connection.iterdump()  # without BEGIN and COMMIT

    def quick(connection: sa.Connection) -> None:
        if connection.dialect.name != "sqlite" or sa.inspect(connection).get_table_names():
            return migrate(connection)
        for statement in statements:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("UPDATE identity SET id = ?", (str(uuid.uuid4()),))
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "migrate", quick)
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_look_around() -> Iterator[None]:
    """Read once what stays as it is: Alembic's scripts, what is installed, and the state of this repository."""
    kept: dict[Any, Any] = {}
    read, git_record = ScriptDirectory.from_config, mlflow_run.git_record

    def scripts(config: Any) -> ScriptDirectory:
        place = config.get_main_option("script_location")
        if place not in kept:
            kept[place] = read(config)
        return kept[place]

    def record(path: Path, files: dict[str, bytes], **options: Any) -> Any:
        if not path.is_relative_to(ROOT):
            return git_record(path, files, **options)
        key = (path, *files.items(), *options.items())
        if key not in kept:
            kept[key] = git_record(path, files, **options)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", scripts)
        patch.setattr(mlflow_run, "packages", cache(mlflow_run.packages))
        patch.setattr(mlflow_run, "git_record", record)
        yield


@pytest.fixture
def real_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Alembic make also new state databases."""
    monkeypatch.setattr(database, "migrate", migrate)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loaders of what a test reads be forked where torch is imported; how they start is others' matter."""
    from forked import ForkedLoaders

    from raymlops.data.loading import pool

    monkeypatch.setattr(pool, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": ForkedLoaders}))


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
def state(url: str) -> Iterator[State]:
    """Return the opened state database of ``url``."""
    with State.open(url) as opened:
        yield opened


@pytest.fixture(params=["path", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a folder of checkpoints, on the disk and in the object store."""
    if request.param == "s3":
        return request.getfixturevalue("s3").uri("bucket/run/checkpoints")
    return f"{tmp_path}/run/checkpoints"
