"""Runs that are written together, beside the same ones that MLflow's client has written."""

from __future__ import annotations

import sqlite3
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from written_runs import differences

from raymlops.errors import TrackingError
from raymlops.tracking.client import PARENT, Tracker
from raymlops.tracking.run_tables import NewRun, RunTables, RunWrite

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(storage_path: Path) -> Tracker:
    return Tracker(f"sqlite:///{storage_path}/mlflow.db")


def new(**fields: Any) -> NewRun:
    return NewRun(**{"run_id": uuid.uuid4().hex, "experiment": "e", "name": "n", "tags": {}, "started_ms": 5, **fields})


def write(created: NewRun, **fields: Any) -> RunWrite:
    return RunWrite(created.run_id, created, **fields)


def test_a_run_is_the_same_whichever_way_it_is_written(store: Tracker) -> None:
    """In everything that MLflow's client reads, and in each table of the database."""
    assert differences(store) == {}


def test_the_installed_mlflow_is_known() -> None:
    """Its tables have the columns that are written; MySQL, servers and workspaces are left to the client."""
    assert RunTables.is_supported("sqlite:///x.db")
    assert RunTables.is_supported("postgresql+psycopg://db/mlflow")
    assert not RunTables.is_supported("mysql://db/mlflow")
    assert not RunTables.is_supported("http://mlflow:5000")


def test_an_mlflow_with_another_column_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that separates workspaces."""
    from mlflow.store.tracking.dbmodels import models

    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    assert not RunTables.is_supported("sqlite:///x.db")
    monkeypatch.delenv("MLFLOW_ENABLE_WORKSPACES")
    metadata = sa.MetaData()
    for table in models.Base.metadata.tables.values():
        table.to_metadata(metadata)
    metadata.tables["runs"].append_column(sa.Column("region", sa.String))
    monkeypatch.setattr(models.Base, "metadata", metadata)
    assert not RunTables.is_supported("sqlite:///x.db")


def test_what_mlflow_rejects_is_left_out(store: Tracker) -> None:
    """The others are written: of these its client says what is wrong with them."""
    good = write(new())
    bad = [
        write(new(), points=[("loss", 1.0, 0, -1)]),
        write(new(), params={"a b!": "1", "a b_": "2"}),
        write(new(), tags={"mlflow.runName": "other"}),
        write(new(), tags={"k" * 300: "v"}),
    ]
    assert store.write_runs([*bad, good]) == {good.run_id}
    assert [run.info.run_id for run in store.client.search_runs(["1"])] == [good.run_id]
    with pytest.raises(TrackingError, match="Timestamp must be a nonnegative"):
        store.log_batch(good.run_id, bad[0].points)


def test_a_run_that_was_deleted_or_is_missing_is_left_out(store: Tracker) -> None:
    """Nothing of it changes."""
    deleted = store.start_run("e", name="x", tags={})
    store.delete_run(deleted)
    there = store.start_run("e", name="x", tags={})
    ending = ("FINISHED", 7)
    assert store.write_runs([RunWrite(run, tags={"a": "b"}, ending=ending) for run in (deleted, there, "f" * 32)]) == {
        there
    }
    assert (store.run(there).info.status, store.run(there).data.tags["a"]) == ("FINISHED", "b")
    assert (store.run(deleted).info.status, store.run(deleted).data.tags.get("a")) == ("RUNNING", None)


def test_what_is_there_already_stays(store: Tracker) -> None:
    """A later write adds points, replaces tags and moves the latest value only on."""
    created = new()
    store.write_runs([write(created, points=[("a", 3.0, 5, 5), ("b", 1.0, 1, 1)], tags={"t": "1", "u": "1"})])
    store.write_runs([RunWrite(created.run_id, points=[("a", 9.0, 4, 9), ("b", 2.0, 2, 2)], tags={"t": "2"})])
    store.write_runs([write(created, points=[("a", 3.0, 5, 5)], ending=("FINISHED", 7))])
    found = store.run(created.run_id)
    assert found.data.metrics == {"a": 3.0, "b": 2.0}
    assert store.history(created.run_id, "a") == [(4, 9.0), (5, 3.0)]
    assert {"t": "2", "u": "1"}.items() <= found.data.tags.items()
    assert (found.info.status, found.info.start_time, found.info.end_time) == ("FINISHED", 5, 7)


def test_a_database_that_another_mlflow_migrated_is_left_alone(store: Tracker, storage_path: Path) -> None:
    """Also where that happens while a sweep runs."""
    first, second = write(new()), write(new())
    assert store.write_runs([first]) == {first.run_id}
    with sqlite3.connect(storage_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'later'")
    assert store.write_runs([second]) == set()


def test_a_deleted_experiment_is_an_error(store: Tracker) -> None:
    """The one that the client gives; where it is missing it is created, as by the client."""
    store.write_runs([write(new(experiment="f"))])
    found = store.client.get_experiment_by_name("f")
    store.client.delete_experiment(found.experiment_id)
    with pytest.raises(TrackingError, match="the MLflow experiment 'f' was deleted"):
        store.write_runs([write(new(experiment="f"))])


def test_a_write_fails_as_a_whole(store: Tracker, storage_path: Path) -> None:
    """A transaction that the database refuses in its middle leaves none of its runs."""
    with sqlite3.connect(storage_path / "mlflow.db") as database:
        database.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON tags WHEN NEW.key = 'x' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    parent = store.start_run("e", name="p", tags={})
    with pytest.raises(TrackingError):
        store.write_runs([write(new(tags={key: "1", PARENT: parent}), points=[("a", 1.0, 1, 1)]) for key in "abx"])
    assert store.children_of(parent) == []
