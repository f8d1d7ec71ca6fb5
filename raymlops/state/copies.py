"""The state in a backup: a state database of its own in one SQLite file, and what becomes of one that is restored.

Owns which rows travel, what must be empty before they arrive, and whose state it is afterwards. Keys travel as the
hashes that they are stored as. An older state is migrated by opening it, like any other.
"""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from raymlops.config.paths import sqlite_url
from raymlops.display import number_of
from raymlops.errors import RefusedError
from raymlops.records import BundleRef
from raymlops.state.audit import add_event
from raymlops.state.database import Database
from raymlops.state.engine import this_user
from raymlops.state.identity import SELF, SHORT, History, owner_in
from raymlops.state.schema import HEAD, audit, deployments, identity, metadata, transitions, versions
from raymlops.storage.tables import copy_rows, rows_in, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

SCHEMA = HEAD
RESTORE = "restore"
"""Action of the event by which a state says that it came from a backup."""
_TABLES = tuple(metadata.sorted_tables)


class ModelVersion(NamedTuple):
    """A model version as a state knows it."""

    name: str
    version: int
    digest: str


@dataclass(frozen=True)
class SavedState:
    """What a copy of the state names."""

    id: str
    rows: int
    live: frozenset[BundleRef]
    """Bundles that should be on Serve, or are on their way there."""
    recorded: frozenset[BundleRef]
    """Those of all versions."""


def save_state(url: str, file: Path) -> SavedState:
    """Write the state as of one moment into a new file.

    Raises:
        StorageError, UnreachableError: the state cannot be read, or the file not written.
    """
    Database.open(url).close()  # brings it to this schema, and says what is wrong with it
    with (
        snapshot(url, what="the state database") as source,
        Database.open(sqlite_url(file)) as copy,
        copy.writing() as target,
    ):
        target.execute(sa.delete(identity))
        counts = copy_rows(source, target, _TABLES)
        live = {
            BundleRef(uri=row.bundle_uri, digest=row.digest)
            for row in target.execute(sa.select(deployments.c.bundle_uri, deployments.c.digest))
        }
        running = sa.select(transitions.c.goal, transitions.c.restores).where(transitions.c.status == "running")
        live |= {bundle for row in target.execute(running) for bundle in _bundles(list(row))}
        found = target.execute(sa.select(versions.c.bundle_uri, versions.c.digest)).all()
        recorded = {BundleRef(uri=row.bundle_uri, digest=row.digest) for row in found}
        mine = owner_in(target, History()).id
    return SavedState(mine, sum(counts.values()), frozenset(live), frozenset(recorded))


def versions_in(file: Path) -> tuple[frozenset[ModelVersion], frozenset[ModelVersion]]:
    """Return the versions that should be live by a copy of a state, and all that it recorded.

    Raises:
        StorageError: it cannot be read.
    """
    with Database.open(sqlite_url(file)) as copy, copy.reading() as rows:
        live, recorded = (
            frozenset(
                ModelVersion(row.name, row.version, row.digest)
                for row in rows.execute(sa.select(table.c.name, table.c.version, table.c.digest))
            )
            for table in (deployments, versions)
        )
    return live, live | recorded


def state_there(url: str) -> str | None:
    """Return what a state holds, in words; None for one that is empty, or not there yet.

    Raises:
        StorageError, UnreachableError: it cannot be read.
    """
    with _reading(url) as connection:
        return None if connection is None else _there(connection)


def came_last(url: str, *, backup: str, as_copy: bool, alone: bool) -> str | None:
    """Return the id of a state whose newest change is that it came from this backup in this way; else None.

    The state is written last, so that a restore which did so and was killed is over.

    Raises:
        StorageError, UnreachableError: it cannot be read.
    """
    with _reading(url) as connection:
        if connection is None:
            return None
        newest = connection.execute(sa.select(audit).order_by(audit.c.id.desc()).limit(1)).one_or_none()
        if newest is None or (newest.action, newest.subject) != (RESTORE, SELF):
            return None
        after = newest.after
        way = (after["backup"], newest.before["id"] != after["id"], after.get("alone", False))
        return str(after["id"]) if way == (backup, as_copy, alone) else None


def restore_state(
    file: Path, url: str, *, change: Callable[[str, Any], Any], came: dict[str, Any], why: str, as_copy: bool
) -> str:
    """Write a state from a backup into an empty database, in one transaction with its event; return its id.

    It keeps its id: Serve's applications and the prediction log know it by that, and refuse a state that is older than
    what runs. ``as_copy``, it is another state from now on, for one beside a running original: what belongs to that
    one it leaves alone. ``came`` is what the event says of the backup.

    Raises:
        RefusedError: the database is not empty; nothing was changed.
        StorageError: a newer raymlops wrote the backup, or the database cannot be written; nothing was changed.
    """
    with (
        Database.open(sqlite_url(file)) as copy,
        Database.open(url) as target,
        copy.reading() as rows,
        target.writing() as connection,
    ):
        if (found := _there(connection)) is not None:
            raise RefusedError(f"the state database is not empty: {found}")
        connection.execute(sa.delete(identity))
        copy_rows(rows, connection, _TABLES, change=change)
        before = owner_in(connection, History()).id
        after = str(uuid.uuid4()) if as_copy else before
        if as_copy:
            connection.execute(sa.update(identity).values(id=after, made_by=this_user(), cluster=None))
        add_event(connection, action=RESTORE, subject=SELF, before={"id": before}, after={"id": after, **came}, why=why)
    return after


def restored_at(database: Database) -> datetime | None:
    """Return when a state was restored from a backup the last time; None if it never was."""
    query = sa.select(audit.c.ts).where(audit.c.subject == SELF, audit.c.action == RESTORE)
    with database.reading() as connection:
        found: datetime | None = connection.scalar(query.order_by(audit.c.id.desc()).limit(1))
        return found


@contextmanager
def _reading(url: str) -> Iterator[sa.Connection | None]:
    """Yield a connection to a state that is there; None where there is none, since opening it would make its tables."""
    with snapshot(url, what="the state database") as connection:
        made = sa.inspect(connection).has_table(audit.name)
    if not made:
        yield None
        return
    with Database.open(url) as there, there.reading() as connection:
        yield connection


def _there(connection: sa.Connection) -> str | None:
    counts = rows_in(connection, [table for table in _TABLES if table is not identity])
    if not counts:
        return None
    words = {"audit": "change", "versions": "version", "deployments": "deployment", "api_keys": "API key"}
    named = [number_of(counts[name], word) for name, word in words.items() if name in counts]
    rest = sum(count for name, count in counts.items() if name not in words)
    named += [number_of(rest, "other row")] if rest else []
    came = connection.scalar(
        sa.select(audit.c.why).where(audit.c.subject == SELF, audit.c.action == RESTORE).order_by(audit.c.id.desc())
    )
    which = f"state {owner_in(connection, History()).id[:SHORT]} with {', '.join(named)}"
    return which if came is None else f"{which}, which came from a backup ({came})"


def _bundles(data: Any) -> set[BundleRef]:
    """Return every reference to a bundle within JSON data."""
    if isinstance(data, dict):
        if {"uri", "digest"} <= data.keys():
            return {BundleRef(uri=data["uri"], digest=data["digest"])}
        return {bundle for item in data.values() for bundle in _bundles(item)}
    return {bundle for item in data for bundle in _bundles(item)} if isinstance(data, list | tuple) else set()
