"""Audit events: who changed what, when, from what to what, and why.

An event is written in the transaction of its change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from raymlops.errors import UsageError
from raymlops.records import Record
from raymlops.state.engine import this_user
from raymlops.state.schema import Time, audit
from raymlops.storage import clock

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import datetime

    from sqlalchemy import Connection

    from raymlops.state.database import Database

_PAGE = 50
"""Events that are read at once."""


def require_why(why: str, what: str) -> None:
    """Make sure that a person says why they do something.

    Raises:
        UsageError: ``why`` is empty; the message has ``what`` was done, such as ``a model was frozen``.
    """
    if not why.strip():
        raise UsageError(f"why is empty: the audit record keeps why {what}", hint="Say it in a sentence: --why TEXT.")


def now(connection: Connection) -> datetime:
    """Return the time in UTC by the one clock that all who use a database share, by which everything is decided.

    It is the server's; whoever uses a SQLite file is on its machine. A replay has its own.
    """
    if connection.dialect.name == "sqlite" or clock.replayed():
        return clock.now()
    return connection.execute(sa.select(sa.func.clock_timestamp(type_=Time))).scalar_one()


@dataclass(frozen=True)
class AuditEvent(Record):
    """One change: who, when, what, from what to what, and why."""

    id: int
    ts: datetime
    actor: str
    action: str
    subject: str
    before: Any
    after: Any
    why: str


def add_event(
    connection: Connection,
    *,
    action: str,
    subject: str,
    before: Any = None,
    after: Any = None,
    why: str = "",
    actor: str | None = None,
) -> None:
    """Add an audit event within a transaction; ``actor`` defaults to this user on this host."""
    values = {"before": before, "after": after, "why": why, "action": action, "subject": subject}
    connection.execute(sa.insert(audit).values(ts=now(connection), actor=actor or this_user(), **values))


def events_in(connection: Connection, query: sa.Select[Any]) -> list[AuditEvent]:
    """Return the events that a query on ``audit`` finds, newest first."""
    return [AuditEvent(**row) for row in connection.execute(query.order_by(audit.c.id.desc())).mappings()]


def about(name: str) -> sa.ColumnElement[bool]:
    """Return what is true of the events of a model and of its versions (``NAME``, ``NAME/VERSION``)."""
    return (audit.c.subject == name) | audit.c.subject.startswith(f"{name}/", autoescape=True)


def is_recorded(database: Database, name: str) -> bool:
    """Return whether there is any event of a model or of its versions."""
    with database.reading() as connection:
        return connection.scalar(sa.select(audit.c.id).where(about(name)).limit(1)) is not None


def subjects_of(database: Database, actions: Collection[str]) -> list[str]:
    """Return what was ever changed by one of these actions, sorted."""
    query = sa.select(audit.c.subject).where(audit.c.action.in_(actions)).distinct().order_by(audit.c.subject)
    with database.reading() as connection:
        return list(connection.scalars(query))


def newest_of(database: Database, subject: str, actions: Collection[str]) -> AuditEvent | None:
    """Return the newest event of one subject by one of these actions; None without one."""
    query = sa.select(audit).where(audit.c.subject == subject, audit.c.action.in_(actions))
    with database.reading() as connection:
        return next(iter(events_in(connection, query.limit(1))), None)


def changes_of(database: Database, name: str, actions: Collection[str] = ()) -> Iterator[AuditEvent]:
    """Yield the changes of a model's deployments, newest first, a page of events at a time.

    All of them, or those by some ``actions``. What was desired ``before`` and ``after`` are lists of deployments.
    """
    query = sa.select(audit).where(audit.c.subject == name)
    if actions:
        query = query.where(audit.c.action.in_(actions))
    before: int | None = None
    while True:
        page_query = query if before is None else query.where(audit.c.id < before)
        with database.reading() as connection:
            page = events_in(connection, page_query.limit(_PAGE))
        yield from (event for event in page if isinstance(event.before, list) and isinstance(event.after, list))
        if len(page) < _PAGE:
            return
        before = page[-1].id
