"""Incidents, the verdicts on windows that made them, and from when on what is served counts as normal.

Owns the records and their tables. A verdict is there once, by its window: with it, in one transaction, are written the
incident that it opens, extends or closes, the message that somebody is to get, and the audit event. Knows nothing of
how a window is judged, nor of how a message is sent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa

from raymlops.display import some_of
from raymlops.errors import NotFoundError
from raymlops.records import Record
from raymlops.state.audit import add_event
from raymlops.state.schema import drift_baselines, drift_windows, incidents, messages
from raymlops.state.watch.windows import JudgedWindow, Kind, Side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from sqlalchemy import Connection

    from raymlops.state.database import Database
    from raymlops.state.watch.messages import Message, Told

REBASELINE = "drift.rebaseline"
"""Action of the audit event."""
_TOLD_COLUMNS = 20


@dataclass(frozen=True)
class Incident(Record):
    """Windows that are an alarm for one cause, from the first one to the last."""

    id: str
    name: str
    side: Side
    kind: Kind
    version: int
    opened_at: datetime
    """Start of its first window; of an alarm by two windows running, of the first of these."""
    last_at: datetime
    """Start of its last window that was an alarm."""
    windows: int
    """How many were an alarm."""
    columns: tuple[str, ...]
    """That moved in any of them; or the bounds that one was beyond, as ``carrier (max_nulls)``."""
    closed_at: datetime | None = None
    acknowledged_at: datetime | None = None
    """One that is beyond a bound stays open, acknowledged, until it is within its bounds again."""
    acknowledged_by: str | None = None
    acknowledged_why: str | None = None

    def text(self) -> str:
        """Return it as a line."""
        since = f"since {self.opened_at:%Y-%m-%d %H:%M} UTC"
        by = f", acknowledged by {self.acknowledged_by}" if self.acknowledged_by and self.closed_at is None else ""
        if self.kind == "silence":
            return f"incident {self.id}: {self.side}, no row {since}{by}"
        what = {"skew": ", skew", "quality": ", beyond a bound", "skill": ", worse by their labels"}.get(self.kind, "")
        windows = f"{self.windows} windows" if self.windows > 1 else "one window"
        windows = f"by the first windows of version {self.version}" if self.kind == "skew" else windows
        return f"incident {self.id}: {self.side}{what}, {since}, {windows}: {some_of(self.columns)}{by}"


@dataclass(frozen=True)
class Baseline(Record):
    """From when on what is served counts as normal; ``columns`` is None for all of them."""

    kind: ClassVar[Kind] = "drift"

    name: str
    side: Side
    version: int
    start: datetime
    columns: tuple[str, ...] | None
    why: str
    actor: str
    made_at: datetime


@dataclass(frozen=True)
class Known:
    """What is known of a cause when a window of it is judged, or when a person decides on it."""

    incident: Incident | None = None
    """The open one."""
    since: tuple[JudgedWindow, ...] = ()
    """The windows since its last alarm, in order, without details."""
    told: frozenset[Told] = frozenset()
    """The messages about it."""
    window: JudgedWindow | None = None
    """Its last window that was an alarm."""


@dataclass(frozen=True)
class Filed:
    """What follows: the incident from now on, the message about it, what is normal, and the audit event of it."""

    incident: Incident | None = None
    message: Message | None = None
    action: str = ""
    why: str = ""
    baseline: Baseline | None = None


def record_window(
    database: Database,
    window: JudgedWindow,
    file: Callable[[Known], Filed],
    *,
    baselines: int = 0,
    actor: str | None = None,
) -> bool:
    """Write a verdict and all that follows it, in one transaction; return False if it is not to be written.

    It is not where this window or one that ends later has one already, of whatever length; skew where its version has;
    or where a person said that something else is normal since the verdict was found, with ``baselines`` of the model
    then. ``file`` changes nothing itself.

    Raises:
        StorageError, UnreachableError: the database cannot be written; nothing was changed.
    """
    with database.writing() as connection:
        ours = _same_cause(window)
        if window.kind != "skew":
            ours.append(drift_windows.c.stop > window.start)
        if connection.execute(sa.select(drift_windows.c.name).where(*ours)).first() is not None:
            return False
        if len(_baselines_in(connection, window.name)) != baselines:
            return False
        known = _known(connection, _open_in(connection, window))
        filed = file(known)
        after = filed.incident
        kept = window if after is None or window.outcome != "alarm" else replace(window, incident=after.id)
        connection.execute(sa.insert(drift_windows), asdict(kept))
        _put(connection, window.name, known.incident, filed, actor=actor)
    return True


def change_incident(
    database: Database, incident_id: str, change: Callable[[Known], Filed], *, name: str, actor: str | None = None
) -> Incident:
    """Change an incident of a model, with all that follows, in one transaction; return it as it is from now on.

    Raises:
        NotFoundError: the model has no such incident.
        RaymlopsError: of ``change``; nothing was changed.
        StorageError, UnreachableError: the database cannot be written; nothing was changed.
    """
    with database.writing() as connection:
        found = incidents_in(connection, name)
        before = next((one for one in found if one.id == incident_id), None)
        if before is None:
            open_ = [one.id for one in found if one.closed_at is None]
            raise NotFoundError(
                f"{name} has no incident {incident_id}", hint=f"Open are: {', '.join(open_) or 'none'}."
            )
        filed = change(_known(connection, before))
        _put(connection, name, before, filed, actor=actor)
    return filed.incident or before


def add_baselines(
    database: Database, baselines: Iterable[Baseline], close: Callable[[Known], Filed], *, actor: str | None = None
) -> tuple[Incident, ...]:
    """Write from when on all that is served is normal, and close the incidents of its drift; return what was closed.

    Raises:
        StorageError, UnreachableError: the database cannot be written; nothing was changed.
    """
    closed = []
    with database.writing() as connection:
        for baseline in baselines:
            _put(connection, baseline.name, None, Filed(None, None, REBASELINE, baseline.why, baseline), actor=actor)
            before = _open_in(connection, baseline)
            if before is not None:
                filed = close(_known(connection, before))
                _put(connection, baseline.name, before, filed, actor=actor)
                closed.append(filed.incident or before)
    return tuple(closed)


def incidents_of(database: Database, name: str | None = None, *, open_only: bool = False) -> list[Incident]:
    """Return the incidents of a model or of all, newest first; only those that are open, if wanted."""
    with database.reading() as connection:
        return incidents_in(connection, name, open_only=open_only)


def baselines_of(database: Database, name: str) -> list[Baseline]:
    """Return what was said to be normal for a model, newest first."""
    with database.reading() as connection:
        return _baselines_in(connection, name)


def _open_in(connection: Connection, cause: JudgedWindow | Baseline) -> Incident | None:
    """Return the open incident of what a window, or what is normal, is about."""
    query = sa.select(incidents).where(incidents.c.closed_at.is_(None), *_same_cause(cause, incidents))
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Incident(**row)


def _same_cause(
    cause: JudgedWindow | Incident | Baseline, among: sa.Table = drift_windows
) -> list[sa.ColumnElement[bool]]:
    return [among.c[key] == getattr(cause, key) for key in ("name", "side", "kind", "version")]


def incidents_in(connection: Connection, name: str | None, *, open_only: bool = False) -> list[Incident]:
    """Return the incidents of a model or of all, as ``incidents_of``."""
    query = sa.select(incidents).order_by(incidents.c.opened_at.desc(), incidents.c.id)
    if name is not None:
        query = query.where(incidents.c.name == name)
    if open_only:
        query = query.where(incidents.c.closed_at.is_(None))
    return [Incident(**row) for row in connection.execute(query).mappings()]


def _baselines_in(connection: Connection, name: str) -> list[Baseline]:
    query = sa.select(drift_baselines).where(drift_baselines.c.name == name).order_by(drift_baselines.c.id.desc())
    rows = connection.execute(query).mappings()
    return [Baseline(**{key: value for key, value in row.items() if key != "id"}) for row in rows]


def _known(connection: Connection, incident: Incident | None) -> Known:
    if incident is None:
        return Known()
    table = drift_windows.c
    few = [column for column in table if column.name != "details"]
    later = sa.select(*few).where(*_same_cause(incident), table.start > incident.last_at).order_by(table.start)
    told = sa.select(messages.c.what).where(messages.c.incident == incident.id)
    last = sa.select(drift_windows).where(table.incident == incident.id).order_by(table.start.desc()).limit(1)
    row = connection.execute(last).mappings().one_or_none()
    return Known(
        incident,
        tuple(JudgedWindow(**each) for each in connection.execute(later).mappings()),
        frozenset(connection.scalars(told)),
        None if row is None else JudgedWindow(**row),
    )


def _put(connection: Connection, name: str, before: Incident | None, filed: Filed, *, actor: str | None) -> None:
    after = filed.incident
    if before is None and after is not None:
        connection.execute(sa.insert(incidents), asdict(after))
    elif before is not None and after is not None and after != before:
        connection.execute(sa.update(incidents).where(incidents.c.id == after.id).values(asdict(after)))
    if filed.baseline is not None:
        connection.execute(sa.insert(drift_baselines), asdict(filed.baseline))
    if filed.message is not None:
        connection.execute(sa.insert(messages), asdict(filed.message))
    if filed.action:
        add_event(
            connection,
            actor=actor,
            action=filed.action,
            subject=name,
            before=_told(before),
            after=filed.baseline.to_dict() if filed.baseline is not None and after is None else _told(after),
            why=filed.why,
        )


def _told(incident: Incident | None) -> dict[str, Any] | None:
    """Return an incident for the audit record, of many columns the first ones."""
    if incident is None:
        return None
    return {**incident.to_dict(), "columns": list(incident.columns[:_TOLD_COLUMNS])}
