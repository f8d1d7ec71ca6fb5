"""Transitions: versions that come up for a purpose, such as the route, and how each ended.

Owns the record and its table, one row a version: its newest transition. Every function takes a connection, so that a
transition and the deployments that it changes are one transaction. Knows nothing of how a version comes up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from raymlops.records import Record
from raymlops.state.schema import transitions as table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy import Connection

    from raymlops.state.database import Database

TransitionStatus = Literal["running", "done", "failed", "superseded"]


@dataclass(frozen=True)
class Transition(Record):
    """A version that comes up, what it gets once it is up, and what is restored if it does not."""

    id: str
    name: str
    version: int
    goal: dict[str, Any]
    """What it gets once it is up; empty if it only comes up, or takes other settings."""
    action: str
    """Of the audit event by which it gets that."""
    began_as: str
    """Action of the audit event by which it began."""
    why: str
    actor: str
    began_at: datetime
    timeout_s: float
    """How long it may take to come up, from when it is started."""
    started_at: datetime | None = None
    """When the reconciler first had it before it, Serve answered, and no build held it back; while a node is added for
    its first replica, lately."""
    hurry: bool = False
    """Whether one replica is enough to take the route."""
    restores: list[dict[str, Any]] = field(default_factory=list)
    """Deployments that are desired again if it fails: its own previous one, and those that made room for it."""
    status: TransitionStatus = "running"
    reason: str = ""
    """How it ended."""

    @property
    def deadline_at(self) -> datetime | None:
        """Return until when it may take to come up; None before it is started."""
        return self.started_at and self.started_at + timedelta(seconds=self.timeout_s)


def put_transition(connection: Connection, transition: Transition) -> None:
    """Write a transition in place of an earlier one of the same version."""
    mine = (table.c.name == transition.name) & (table.c.version == transition.version)
    connection.execute(sa.delete(table).where(mine))
    connection.execute(sa.insert(table), asdict(transition))


def start(database: Database, transitions: Iterable[Transition], *, now: datetime) -> None:
    """Record that the time of these transitions begins now."""
    if ids := [one.id for one in transitions]:
        with database.writing() as connection:
            connection.execute(sa.update(table).where(table.c.id.in_(ids)).values(started_at=now))


def transitions_in(connection: Connection, name: str | None = None) -> list[Transition]:
    """Return the running transitions, of one model or of all; oldest first."""
    return _read(connection, table.c.status == "running", True if name is None else table.c.name == name)


def given_up_in(connection: Connection) -> list[Transition]:
    """Return what was to replace a version, and failed or was superseded: the newest of its version, oldest first."""
    replaces = table.c.goal["replaces"].as_integer().is_not(None)
    return _read(connection, table.c.status.in_(("failed", "superseded")), replaces)


def newest_transition(database: Database, name: str, version: int) -> Transition | None:
    """Return the newest transition of a version, whether or not it has ended; None without one."""
    query = sa.select(table).where(table.c.name == name, table.c.version == version)
    with database.reading() as connection:
        row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Transition(**row)


def _read(connection: Connection, *wanted: Any) -> list[Transition]:
    query = sa.select(table).where(*wanted).order_by(table.c.began_at, table.c.name, table.c.version)
    return [Transition(**row) for row in connection.execute(query).mappings()]
