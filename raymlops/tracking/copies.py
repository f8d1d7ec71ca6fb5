"""MLflow's database in a backup: its tables in one SQLite file, and what of them names files.

Owns which tables travel: all but those that hold credentials of MLflow's own (its gateway, webhooks) or refer to such,
and those that say what its server is doing now. The schema of both sides is this MLflow's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from raymlops.storage.tables import TableSet, copy_rows, new_file, snapshot, writing
from raymlops.tracking.client import Tracker
from raymlops.tracking.database import check_schema, unmade

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

WHAT = "MLflow's database"
_SECRET = frozenset({"secrets", "endpoints", "webhooks"})
_NOW = frozenset({"jobs", "job_locks", "scheduler_leases"})
_PARAMS = "params"
"""What a run was given: a record of then, which no restore changes."""


@dataclass(frozen=True)
class SavedVersion:
    """A model version in a copy, with what of it is kept elsewhere."""

    name: str
    version: int
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
    without_tag: str | None = None,
) -> None:
    """Write the tables of a copy into an empty database, which is made where there is none: ``TableSet.restore``.

    The tag ``without_tag`` of all models is empty then.

    Raises:
        TrackingError: it has the schema of another MLflow.
        RefusedError, StorageError, UnreachableError, UsageError: as there.
    """

    def changed(table: str, value: Any) -> Any:
        return value if table == _PARAMS else change(table, value)

    Tracker(url, artifacts=artifacts).check()
    tracking_tables().restore(file, url, backup=backup, change=changed)
    if without_tag is not None:  # also of rows that a restore which was killed wrote with it
        tags = _named()["registered_model_tags"]
        with writing(url, what=WHAT) as target:
            target.execute(sa.update(tags).where(tags.c.key == without_tag).values(value=""))


def versions_there(url: str) -> tuple[SavedVersion, ...]:
    """Return the model versions in MLflow's database, without those that were deleted; none where it has no tables.

    Raises:
        StorageError, UnreachableError, UsageError: it cannot be read.
    """
    with snapshot(url, what=WHAT) as source:
        return () if unmade(source) else _versions(source)


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
    named = _named()
    versions, runs, kinds = named["model_versions"].c, named["runs"].c, named["tags"].c
    kept = sa.union(
        sa.select(versions.run_id).where(versions.run_id.is_not(None)),
        sa.select(kinds.run_uuid).where(kinds.key == "raymlops.kind", kinds.value == "sweep"),
    )
    places = connection.execute(sa.select(runs.run_uuid, runs.artifact_uri).where(runs.run_uuid.in_(kept)))
    return SavedTracking(rows, _versions(connection), {row.run_uuid: row.artifact_uri for row in places})


def _versions(connection: sa.Connection) -> tuple[SavedVersion, ...]:
    from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL

    versions, tags = (_named()[name].c for name in ("model_versions", "model_version_tags"))
    found: dict[tuple[str, int], dict[str, str]] = {}
    for row in connection.execute(sa.select(tags.name, tags.version, tags.key, tags.value)):
        found.setdefault((row.name, row.version), {})[row.key] = row.value
    kept = sa.select(versions.name, versions.version, versions.source).where(
        versions.current_stage.is_distinct_from(STAGE_DELETED_INTERNAL)
    )
    return tuple(
        SavedVersion(row.name, row.version, row.source or "", found.get((row.name, row.version), {}))
        for row in connection.execute(kept)
    )


def _named() -> dict[str, sa.Table]:
    return {table.name: table for table in tracking_tables().tables}
