"""Verdicts on windows of traffic, incidents, the messages about them, and from when on what is served counts as normal.

Owns the records and their tables. A verdict is there once, by its window: with it, in one transaction, are written the
incident that it opens, extends or closes, the message that somebody is to get, and the audit event. Knows nothing of
how a window is judged, nor of how a message is sent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from raymlops.records import Record
from raymlops.state.audit import add_event
from raymlops.state.schema import drift_baselines, drift_windows, incidents, messages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from raymlops.state.database import Database

Side = Literal["inputs", "outputs"]
Kind = Literal["drift", "skew"]
Told = Literal["opened", "escalated", "closed"]

ANY_VERSION = 0
"""Version of the inputs' drift, which is judged over all versions of a model."""


@dataclass(frozen=True)
class JudgedWindow(Record):
    """The verdict on one window of traffic, or why there is none."""

    name: str
    side: Side
    kind: Kind
    version: int
    """That it is about; ``ANY_VERSION`` for the inputs' drift."""
    start: datetime
    stop: datetime
    judged_by: int
    """The champion's version then, whose reference it was judged by."""
    outcome: str
    """``ok``, ``warn``, ``alarm`` or ``insufficient``; ``waiting`` without a verdict."""
    reason: str
    rows: int
    judged_at: datetime
    against: str | None = None
    p_one: float | None = None
    p_two: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    """The verdict's numbers and first ``columns``, and the columns that were ``refused``, both bounded."""
    incident: str | None = None
    """The incident that it opened or belongs to."""


@dataclass(frozen=True)
class Incident(Record):
    """Windows that are an alarm for one cause, from the first one to the last."""

    id: str
    name: str
    side: Side
    kind: Kind
    version: int
    opened_at: datetime
    """Start of its first window."""
    last_at: datetime
    """Start of its last window that was an alarm."""
    windows: int
    """How many were an alarm."""
    columns: tuple[str, ...]
    """That moved in any of them."""
    closed_at: datetime | None = None
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None
    acknowledged_why: str | None = None


@dataclass(frozen=True)
class Message(Record):
    """What somebody is to be told of an incident; ``sent_at`` is None until every messenger has it."""

    id: str
    incident: str
    what: Told
    title: str
    body: str
    created_at: datetime
    attempts: int = 0
    retry_at: datetime | None = None
    sent_at: datetime | None = None
    last_error: str | None = None
    reached: tuple[str, ...] = ()
    """The keys of the messengers that have it."""


@dataclass(frozen=True)
class Baseline(Record):
    """From when on what is served counts as normal; ``columns`` is None for all of them."""

    name: str
    side: Side
    version: int
    start: datetime
    columns: tuple[str, ...] | None
    why: str
    actor: str
    made_at: datetime


@dataclass(frozen=True)
class Filed:
    """What follows a verdict: the incident from now on, the message about it, and its audit event."""

    incident: Incident | None = None
    message: Message | None = None
    action: str = ""
    why: str = ""


def record_window(
    database: Database, window: JudgedWindow, file: Callable[[JudgedWindow, Incident | None, Sequence[str]], Filed]
) -> bool:
    """Write a verdict and all that follows it, in one transaction; return False if the window had one already.

    ``file`` gets the window, the open incident of its cause, and the outcomes of the windows since that one's last
    alarm, in order, this one last. It may be called again after a crash, and changes nothing itself.

    Raises:
        StorageError, UnreachableError: the database cannot be written; nothing was changed.
    """
    with database.writing() as connection:
        ours = [column == getattr(window, column.name) for column in drift_windows.primary_key]
        if connection.execute(sa.select(drift_windows.c.name).where(*ours)).first() is not None:
            return False
        before = next(iter(_incidents_in(connection, window.name, side=window.side, open_only=True, of=window)), None)
        since = [] if before is None else _outcomes_since(connection, window, before.last_at)
        filed = file(window, before, [*since, window.outcome])
        after = filed.incident
        kept = window if after is None or window.outcome != "alarm" else replace(window, incident=after.id)
        connection.execute(sa.insert(drift_windows), asdict(kept))
        if after is not None:
            _put_incident(connection, before, after)
        if filed.message is not None:
            connection.execute(sa.insert(messages), asdict(filed.message))
        if filed.action:
            add_event(
                connection,
                action=filed.action,
                subject=window.name,
                before=None if before is None else before.to_dict(),
                after=None if after is None else after.to_dict(),
                why=filed.why,
            )
    return True


def judged_windows(
    database: Database, name: str, *, since: datetime | None = None, limit: int | None = None
) -> list[JudgedWindow]:
    """Return the verdicts on a model's windows, newest first: all, those that start at ``since`` or later, or some."""
    query = sa.select(drift_windows).where(drift_windows.c.name == name)
    if since is not None:
        query = query.where(drift_windows.c.start >= since)
    order = (drift_windows.c.start.desc(), drift_windows.c.side, drift_windows.c.kind)
    with database.reading() as connection:
        return [JudgedWindow(**row) for row in connection.execute(query.order_by(*order).limit(limit)).mappings()]


def incidents_of(database: Database, name: str | None = None, *, open_only: bool = False) -> list[Incident]:
    """Return the incidents of a model or of all, newest first; only those that are open, if wanted."""
    with database.reading() as connection:
        return _incidents_in(connection, name, open_only=open_only)


def baselines_of(database: Database, name: str) -> list[Baseline]:
    """Return what was said to be normal for a model, newest first."""
    query = sa.select(drift_baselines).where(drift_baselines.c.name == name).order_by(drift_baselines.c.id.desc())
    with database.reading() as connection:
        rows = connection.execute(query).mappings()
        return [Baseline(**{key: value for key, value in row.items() if key != "id"}) for row in rows]


def messages_of(database: Database, name: str, *, limit: int | None = None) -> list[Message]:
    """Return the messages about a model's incidents, newest first."""
    mine = sa.select(incidents.c.id).where(incidents.c.name == name)
    query = sa.select(messages).where(messages.c.incident.in_(mine))
    with database.reading() as connection:
        rows = connection.execute(query.order_by(messages.c.created_at.desc(), messages.c.id).limit(limit))
        return [Message(**row) for row in rows.mappings()]


def unsent_messages(database: Database) -> dict[str, list[Message]]:
    """Return the messages that some messenger still lacks by model, oldest first."""
    query = sa.select(incidents.c.name, messages).join(incidents, incidents.c.id == messages.c.incident)
    query = query.where(messages.c.sent_at.is_(None)).order_by(messages.c.created_at, messages.c.id)
    found: dict[str, list[Message]] = {}
    with database.reading() as connection:
        for row in connection.execute(query).mappings():
            found.setdefault(row["name"], []).append(
                Message(**{key: value for key, value in row.items() if key != "name"})
            )
    return found


def put_message(database: Database, message: Message) -> None:
    """Write what became of a message; one that is sent stays so."""
    unsent = (messages.c.id == message.id) & messages.c.sent_at.is_(None)
    with database.writing() as connection:
        connection.execute(sa.update(messages).where(unsent).values(**asdict(message)))


def _incidents_in(
    connection: Connection,
    name: str | None,
    *,
    side: Side | None = None,
    open_only: bool = False,
    of: JudgedWindow | None = None,
) -> list[Incident]:
    query = sa.select(incidents).order_by(incidents.c.opened_at.desc(), incidents.c.id)
    if name is not None:
        query = query.where(incidents.c.name == name)
    if side is not None:
        query = query.where(incidents.c.side == side)
    if open_only:
        query = query.where(incidents.c.closed_at.is_(None))
    if of is not None:
        query = query.where(incidents.c.kind == of.kind, incidents.c.version == of.version)
    return [Incident(**row) for row in connection.execute(query).mappings()]


def _put_incident(connection: Connection, before: Incident | None, after: Incident) -> None:
    if before is None:
        connection.execute(sa.insert(incidents), asdict(after))
    elif after != before:
        connection.execute(sa.update(incidents).where(incidents.c.id == after.id).values(asdict(after)))


def _outcomes_since(connection: Connection, window: JudgedWindow, start: datetime) -> list[str]:
    table = drift_windows.c
    cause = [getattr(table, key) == getattr(window, key) for key in ("name", "side", "kind", "version")]
    query = sa.select(table.outcome).where(*cause, table.start > start, table.start < window.start)
    return list(connection.scalars(query.order_by(table.start)))
