"""MLflow's database in a backup: its tables in one SQLite file, and what of them names files.

Owns which tables travel: all but those that hold credentials of MLflow's own (its gateway, webhooks) or refer to such,
and those that say what its server is doing now. The schema of both sides is this MLflow's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from raymlops.storage.tables import TableSet, copy_rows, new_file, snapshot
from raymlops.tracking.client import Tracker
from raymlops.tracking.database import check_schema, unmade

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

WHAT = "MLflow's database"
_SECRET = frozenset({"secrets", "endpoints", "webhooks"})
_NOW = frozenset({"jobs", "job_locks", "scheduler_leases"})
_OWNERS = "registered_model_tags"
_PARAMS = "params"
"""What a run was given: a record of then, which no restore changes."""


@dataclass(frozen=True)
class SavedVersion:
    """A model version in a copy, with what of it is kept elsewhere."""

    source: str
    """URI of its files among the run's artifacts."""
    tags: Mapping[str, str]


@dataclass(frozen=True)
class SavedTracking:
    """What a copy of MLflow's database names."""

    rows: int
    versions: tuple[SavedVersion, ...]
    artifacts: Mapping[str, str]
    """URI of the artifacts of each run that is registered, and of each sweep, which is resumed by its own."""


def tracking_schema() -> tuple[str, str]:
    """Return the schema of this MLflow's tables, and which release it is."""
    import mlflow
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision()), f"mlflow {mlflow.__version__}"


def save_tracking(url: str, file: Path) -> SavedTracking | None:
    """Write MLflow's tables as of one moment into a new file; None where MLflow has made none yet.

    Raises:
        TrackingError: the database has the schema of another MLflow.
        StorageError, UnreachableError, UsageError: it cannot be read, or the file not written.
    """
    check_schema(url)
    tables = tracking_tables().tables
    with snapshot(url, what=WHAT) as source:
        if unmade(source):
            return None
        with new_file(file, tables, what=WHAT) as target:
            counts = copy_rows(source, target, tables)
            return _saved(target, sum(counts.values()))


def restore_tracking(
    file: Path,
    url: str,
    *,
    artifacts: str | None,
    backup: str,
    change: Callable[[str, Any], Any],
    disowned: str | None = None,
) -> None:
    """Write the tables of a copy into an empty database, which is made where there is none: ``TableSet.restore``.

    Models whose aliases belong to the state ``disowned`` are nobody's then.

    Raises:
        TrackingError: it has the schema of another MLflow.
        RefusedError, StorageError, UnreachableError, UsageError: as there.
    """

    def changed(table: str, value: Any) -> Any:
        if table == _PARAMS:
            return value
        if disowned and table == _OWNERS and isinstance(value, str) and value.startswith(disowned):
            return ""
        return change(table, value)

    Tracker(url, artifacts=artifacts).check()
    tracking_tables().restore(file, url, backup=backup, change=changed)


@cache
def tracking_tables() -> TableSet:
    """Return the tables that travel."""
    import mlflow.store.model_registry.dbmodels.models
    import mlflow.store.tracking.dbmodels.models  # noqa: F401 - both add tables to the metadata
    from mlflow.store.db.base_sql_model import Base

    left = set(_SECRET | _NOW)
    found = []
    for table in Base.metadata.sorted_tables:
        if table.name in left or any(key.column.table.name in left for key in table.foreign_keys):
            left.add(table.name)
        else:
            found.append(table)
    words = {"experiments": ("experiment",), "runs": ("run",), "model_versions": ("model version",)}
    return TableSet(WHAT, tuple(found), words, by_itself=frozenset({"experiments", "experiment_tags", "workspaces"}))


def _saved(connection: sa.Connection, rows: int) -> SavedTracking:
    named = {table.name: table.c for table in tracking_tables().tables}
    versions, tags, runs = named["model_versions"], named["model_version_tags"], named["runs"]
    found: dict[tuple[str, int], dict[str, str]] = {}
    for row in connection.execute(sa.select(tags.name, tags.version, tags.key, tags.value)):
        found.setdefault((row.name, row.version), {})[row.key] = row.value
    saved = tuple(
        SavedVersion(row.source or "", found.get((row.name, row.version), {}))
        for row in connection.execute(sa.select(versions.name, versions.version, versions.source))
    )
    kinds = named["tags"]
    kept = sa.union(
        sa.select(versions.run_id).where(versions.run_id.is_not(None)),
        sa.select(kinds.run_uuid).where(kinds.key == "raymlops.kind", kinds.value == "sweep"),
    )
    places = connection.execute(sa.select(runs.run_uuid, runs.artifact_uri).where(runs.run_uuid.in_(kept)))
    return SavedTracking(rows, saved, {row.run_uuid: row.artifact_uri for row in places})
