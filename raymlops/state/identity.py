"""Identify a state database: its id, its newest change, and what it deployed.

Owns the id, created with the tables and kept by every copy, and what the audit record says of the past. Knows nothing
of Serve, whose applications carry both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from raymlops.state.audit import add_event, changes_of
from raymlops.state.schema import audit, identity

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from raymlops.state.database import Database

TAKEOVER = "takeover"
"""Action of the event by which a state that was restored from a backup takes effect again."""
SELF = "state"
"""Subject of that event."""
SHORT = 8


class Revision(NamedTuple):
    """One change: its number in the audit record, and when it was made.

    Both, since a copy of the database continues counting from the same number.
    """

    number: int
    at: str
    """ISO 8601 in UTC."""

    def __str__(self) -> str:
        return f"{self.number} of {self.at[:19].replace('T', ' ')} UTC"


NEVER = Revision(0, "")


class History:
    """What a state database knows of its past; without a database, every change counts as its own."""

    def wrote(self, revision: Revision) -> bool:  # noqa: ARG002 - for subclasses
        """Return whether a change was made in this database, or in the one that it is a later copy of."""
        return True

    def deployed(self, name: str, version: int, digest: str) -> bool:  # noqa: ARG002 - for subclasses
        """Return whether this database ever deployed a version with this digest."""
        return True


@dataclass(frozen=True)
class Owner:
    """A state database by its id and its newest change."""

    id: str = ""
    """Empty without a database."""
    made_by: str = ""
    """User and machine that created the database."""
    revision: Revision = NEVER
    cluster: str = ""
    """Id of the cluster on which it is live; empty before anything was."""
    history: History = field(default_factory=History, compare=False, repr=False)

    def may_be_on(self, cluster: str) -> bool:
        """Return whether it is live on this cluster, or on none yet."""
        return self.cluster in {"", cluster}

    @property
    def short(self) -> str:
        """Return the start of the id, as messages show it."""
        return self.id[:SHORT]

    @property
    def named(self) -> str:
        """Return the id and who made it, as other systems keep it for people."""
        return f"{self.id} (made by {self.made_by})"


class AuditedHistory(History):
    """The past by the audit record, read lazily."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def wrote(self, revision: Revision) -> bool:
        """Return whether the audit record has this event, or a takeover overruled it."""
        with self._database.reading() as connection:
            ts = connection.scalar(sa.select(audit.c.ts).where(audit.c.id == revision.number))
            here = ts is not None and ts.isoformat() == revision.at
            return here or [*revision] in _overruled(connection)

    def deployed(self, name: str, version: int, digest: str) -> bool:
        """Return whether a change of the model's deployments has it."""
        return any(
            item["version"] == version and item["bundle"]["digest"] == digest
            for event in changes_of(self._database, name)
            for side in (event.after, event.before)
            for item in side
        )


def owner_in(connection: Connection, history: History) -> Owner:
    """Return who this database is, in the connection's transaction."""
    row = connection.execute(sa.select(identity)).one()
    newest = connection.execute(sa.select(audit.c.id, audit.c.ts).order_by(audit.c.id.desc()).limit(1)).one_or_none()
    revision = NEVER if newest is None else Revision(newest.id, newest.ts.isoformat())
    return Owner(row.id, row.made_by, revision, row.cluster or "", history)


def settle_on(connection: Connection, cluster: str, *, why: str) -> None:
    """Record in a transaction that this database is live on another cluster from now on."""
    before = connection.scalar(sa.select(identity.c.cluster))
    connection.execute(sa.update(identity).values(cluster=cluster))
    add_event(connection, action="cluster", subject=SELF, before=before, after=cluster, why=why)


def _overruled(connection: Connection) -> list[object]:
    """Return the changes of newer copies that this database overruled."""
    query = sa.select(audit.c.after).where(audit.c.subject == SELF, audit.c.action == TAKEOVER)
    return [after["revision"] for after in connection.scalars(query) if isinstance(after, dict) and "revision" in after]
