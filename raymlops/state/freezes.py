"""Freezes of models, during which nothing of them is retrained or promoted; rollbacks stay possible.

Owns the records and their table. A model has at most one that is in force. Knows nothing of what one holds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from raymlops.errors import RefusedError
from raymlops.records import Record
from raymlops.state.audit import add_event
from raymlops.state.schema import freezes

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from raymlops.state.database import Database

FREEZE, THAW = "loop.freeze", "loop.thaw"
"""Actions of audit events."""


@dataclass(frozen=True)
class Freeze(Record):
    """A time in which the loop neither retrains nor promotes anything of a model; rollbacks stay possible."""

    name: str
    why: str
    actor: str
    made_at: datetime
    until: datetime | None = None
    """When it ends by itself; None for when a person ends it."""
    ended_at: datetime | None = None
    ended_by: str | None = None
    ended_why: str | None = None

    def holds(self, now: datetime) -> bool:
        """Return whether it is in force."""
        return self.ended_at is None and (self.until is None or now < self.until)

    def text(self) -> str:
        """Return it as a line."""
        until = "until it is thawed" if self.until is None else f"until {self.until:%Y-%m-%d %H:%M} UTC"
        return f"{self.name} is frozen since {self.made_at:%Y-%m-%d %H:%M} UTC by {self.actor}, {until}: {self.why}"


def freeze(database: Database, wanted: Freeze) -> None:
    """Freeze a model, with its audit event, in one transaction; in place of an earlier freeze of it.

    Raises:
        StorageError, UnreachableError: the database cannot be written; nothing was changed.
    """
    with database.writing() as connection:
        before = freeze_in(connection, wanted.name)
        _end(connection, wanted.name, at=wanted.made_at, by=wanted.actor, why="another one takes its place")
        connection.execute(sa.insert(freezes), asdict(wanted))
        add_event(
            connection,
            actor=wanted.actor,
            action=FREEZE,
            subject=wanted.name,
            before=None if before is None else before.to_dict(),
            after=wanted.to_dict(),
            why=wanted.why,
        )


def thaw(database: Database, name: str, *, now: datetime, actor: str, why: str) -> Freeze:
    """End the freeze of a model, with its audit event, in one transaction; return it as it was.

    Raises:
        RefusedError: it is not frozen; nothing was changed.
        StorageError, UnreachableError: the database cannot be written; nothing was changed.
    """
    with database.writing() as connection:
        before = freeze_in(connection, name)
        if before is None or not before.holds(now):
            ended = "" if before is None or before.until is None else f" since {before.until:%Y-%m-%d %H:%M} UTC"
            raise RefusedError(f"{name} is not frozen{ended}", hint=f"raymlops status {name} says what is.")
        _end(connection, name, at=now, by=actor, why=why)
        add_event(connection, actor=actor, action=THAW, subject=name, before=before.to_dict(), why=why)
    return before


def freeze_of(database: Database, name: str, *, now: datetime) -> Freeze | None:
    """Return the freeze of a model that is in force; None where it is not frozen."""
    with database.reading() as connection:
        found = freeze_in(connection, name)
    return found if found is not None and found.holds(now) else None


def freeze_in(connection: Connection, name: str) -> Freeze | None:
    """Return the freeze of a model that nobody ended; it may be over by its own time."""
    query = sa.select(freezes).where(freezes.c.name == name, freezes.c.ended_at.is_(None))
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Freeze(**{key: value for key, value in row.items() if key != "id"})


def _end(connection: Connection, name: str, *, at: datetime, by: str, why: str) -> None:
    mine = (freezes.c.name == name, freezes.c.ended_at.is_(None))
    connection.execute(sa.update(freezes).where(*mine).values(ended_at=at, ended_by=by, ended_why=why))
