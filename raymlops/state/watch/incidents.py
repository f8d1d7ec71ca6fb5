"""Incidents, the verdicts on windows that made them, and from when on what is served counts as normal.

Owns the records and their tables. A verdict is there once, by its window: with it, in one transaction, are written the
incidents that it opens, extends or closes, and their audit events. Messages about incidents are written after that, in
one transaction with what is marked as told. Knows nothing of how a window is judged, nor of how a message is sent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from raymlops.errors import NotFoundError, RefusedError
from raymlops.records import Record
from raymlops.state.audit import add_event
from raymlops.state.schema import drift_baselines, drift_windows, incidents, messages
from raymlops.state.watch.windows import JudgedWindow, Kind, Side

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from raymlops.state.database import Database
    from raymlops.state.watch.messages import Message

REBASELINE = "drift.rebaseline"
"""Action of the audit event."""
_TOLD_COLUMNS = 20


@dataclass(frozen=True)
class Incident(Record):
    """Windows that are an alarm for one column or one bound, from the first one to the last."""

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
    column: str
    """That moved; or the bound that one was beyond, as ``carrier (max_nulls)``."""
    quiet_s: float = 0.0
    """For how long its column was as usual since then."""
    closed_at: datetime | None = None
    closed_why: str = ""
    acknowledged_at: datetime | None = None
    """When a person said that it is normal, which closes it, or that it is known, by which it stays open."""
    acknowledged_by: str | None = None
    acknowledged_why: str | None = None
    thread: str | None = None
    """The incident by which the messages about it, and those that were opened with it, are named."""
    told: Literal["", "opened", "acknowledged", "closed"] = ""
    """What the newest message says of it."""

    @property
    def is_normal(self) -> bool:
        """Return whether it was closed by a person who said that it is normal."""
        return self.closed_at is not None and self.closed_at == self.acknowledged_at

    def text(self) -> str:
        """Return it as a line."""
        since = f"since {self.opened_at:%Y-%m-%d %H:%M} UTC"
        by = f", known to {self.acknowledged_by}" if self.acknowledged_by and self.closed_at is None else ""
        if self.kind == "silence":
            return f"incident {self.id}: {self.side}, no row {since}{by}"
        what = {"skew": ", skew", "quality": ", beyond a bound", "skill": ", worse by their labels"}.get(self.kind, "")
        windows = f"{self.windows} windows" if self.windows > 1 else "one window"
        windows = f"by the first windows of version {self.version}" if self.kind == "skew" else windows
        return f"incident {self.id}: {self.side}{what}, {self.column}, {since}, {windows}{by}"


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
    """What follows for an incident: how it is from now on, what is normal, and the audit event of it."""

    incident: Incident
    action: str = ""
    why: str = ""
    baseline: Baseline | None = None


def record_window(
    database: Database,
    window: JudgedWindow,
    file: Callable[[Sequence[Incident]], Iterable[Filed]],
    *,
    normal: Sequence[Baseline] = (),
    actor: str | None = None,
) -> bool:
    """Write a verdict and all that follows it, in one transaction; return False if it is not to be written.

    It is not where this window or one that ends later has one already, of whatever length; skew where its version has;
    or where something else is ``normal`` for the model by now. ``file`` gets the open incidents of what the window is
    about, and changes nothing itself.

    Raises:
        StorageError, UnreachableError: the database cannot be written; nothing was changed.
    """
    with database.writing() as connection:
        ours = _same_cause(window)
        if window.kind != "skew":
            ours.append(drift_windows.c.stop > window.start)
        if connection.execute(sa.select(drift_windows.c.name).where(*ours)).first() is not None:
            return False
        if _baselines_in(connection, window.name) != list(normal):
            return False
        open_ = _open_in(connection, window)
        connection.execute(sa.insert(drift_windows), asdict(window))
        _put(connection, open_, list(file(open_)), actor=actor)
    return True


def change_incident(
    database: Database, incident_id: str, change: Callable[[Incident], Filed], *, name: str, actor: str | None = None
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
        filed = change(before)
        if before.is_normal and not filed.incident.is_normal:
            open_ = [one.id for one in found if one.closed_at is None and _cause(one) == _cause(before)]
            if open_:
                raise RefusedError(f"{before.column} of {name} drifted again since then: incident {open_[0]} is open")
            _remove_baseline(connection, before)
        _put(connection, [before], [filed], actor=actor)
    return filed.incident


def add_baselines(
    database: Database, baselines: Iterable[Baseline], close: Callable[[Incident], Filed], *, actor: str | None = None
) -> tuple[Incident, ...]:
    """Write from when on all that is served is normal, and close the incidents of its drift; return what was closed.

    Raises:
        StorageError, UnreachableError: the database cannot be written; nothing was changed.
    """
    closed: list[Filed] = []
    with database.writing() as connection:
        for one in baselines:
            connection.execute(sa.insert(drift_baselines), asdict(one))
            add_event(connection, actor=actor, action=REBASELINE, subject=one.name, after=one.to_dict(), why=one.why)
            open_ = [each for each in incidents_in(connection, one.name, open_only=True) if _is_drift_of(each, one)]
            filed = [close(each) for each in open_]
            _put(connection, open_, filed, actor=actor)
            closed += filed
    return tuple(one.incident for one in closed)


def tell(
    database: Database,
    compose: Callable[
        [Sequence[Incident], Callable[[Incident], JudgedWindow | None]],
        Iterable[tuple[Message | None, Sequence[Incident]]],
    ],
) -> None:
    """Write the messages that are due about incidents, in one transaction with what they tell.

    ``compose`` gets the incidents that were not told to be closed, and what returns the last window of one that was an
    alarm; it returns each message with the incidents that it tells of, as they are from then on.

    Raises:
        StorageError, UnreachableError: the database cannot be written; nothing was changed.
    """
    with database.writing() as connection:
        query = sa.select(incidents).where(incidents.c.told != "closed").order_by(incidents.c.opened_at, incidents.c.id)
        untold = {row["id"]: Incident(**row) for row in connection.execute(query).mappings()}

        def last_window(incident: Incident) -> JudgedWindow | None:
            last = drift_windows.c.start == incident.last_at
            row = connection.execute(sa.select(drift_windows).where(*_same_cause(incident), last)).mappings().first()
            return None if row is None else JudgedWindow(**row)

        for message, told in list(compose([*untold.values()], last_window)):
            if message is not None:
                connection.execute(sa.insert(messages), asdict(message))
            _put(connection, [untold[one.id] for one in told], [Filed(one) for one in told], actor=None)


def unacknowledged(columns: Iterable[str], among: Iterable[Incident], *, start: datetime) -> tuple[str, ...]:
    """Return those of the columns that a window is an alarm for of which nobody said that they are normal, or known.

    ``among`` are the incidents of what it is about. A verdict keeps its first columns alone: those that incidents say
    were an alarm at its ``start`` count as well.
    """
    ours = [one for one in among if one.opened_at <= start and (one.closed_at is None or one.last_at >= start)]
    known = {one.column for one in ours if one.acknowledged_at is not None}
    left = sorted({one.column for one in ours if one.column not in known and one.last_at >= start})
    return tuple(dict.fromkeys([*(each for each in columns if subject(each, known) not in known), *left]))


def subject(column: str, among: Container[str]) -> str:
    """Return of which column an incident is: of a slice, ``COLUMN[SLICE]``, its column where that is ``among`` some."""
    whole = column.rpartition("[")[0]
    return whole if column.endswith("]") and whole in among else column


def incidents_of(database: Database, name: str | None = None, *, open_only: bool = False) -> list[Incident]:
    """Return the incidents of a model or of all, newest first; only those that are open, if wanted."""
    with database.reading() as connection:
        return incidents_in(connection, name, open_only=open_only)


def baselines_of(database: Database, name: str) -> list[Baseline]:
    """Return what was said to be normal for a model, newest first."""
    with database.reading() as connection:
        return _baselines_in(connection, name)


def _open_in(connection: Connection, cause: JudgedWindow) -> list[Incident]:
    """Return the open incidents of what a window is about."""
    query = sa.select(incidents).where(incidents.c.closed_at.is_(None), *_same_cause(cause, incidents))
    return [Incident(**row) for row in connection.execute(query.order_by(incidents.c.id)).mappings()]


def _same_cause(cause: JudgedWindow | Incident, among: sa.Table = drift_windows) -> list[sa.ColumnElement[bool]]:
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


def _remove_baseline(connection: Connection, incident: Incident) -> None:
    """Take an acknowledged column out of what is normal."""
    table = drift_baselines.c
    ours = [table[key] == getattr(incident, key) for key in ("name", "side", "version")]
    ours += [table.made_at == incident.acknowledged_at]
    for row in connection.execute(sa.select(drift_baselines).where(*ours)).mappings().all():
        left = tuple(each for each in row["columns"] or () if each != incident.column)
        if row["columns"] is not None and left != row["columns"]:
            here = table.id == row["id"]
            change = sa.update(drift_baselines).values(columns=left) if left else sa.delete(drift_baselines)
            connection.execute(change.where(here))


def _put(connection: Connection, before: Sequence[Incident], after: Sequence[Filed], *, actor: str | None) -> None:
    """Write what follows for incidents, and an event for all of them that have one action."""
    known = {one.id: one for one in before}
    for filed in after:
        one = filed.incident
        if one.id not in known:
            connection.execute(sa.insert(incidents), asdict(one))
        elif one != known[one.id]:
            connection.execute(sa.update(incidents).where(incidents.c.id == one.id).values(asdict(one)))
        if filed.baseline is not None:
            connection.execute(sa.insert(drift_baselines), asdict(filed.baseline))
    for action, why in dict.fromkeys((filed.action, filed.why) for filed in after if filed.action):
        ours = [filed.incident for filed in after if (filed.action, filed.why) == (action, why)][:_TOLD_COLUMNS]
        add_event(
            connection,
            actor=actor,
            action=action,
            subject=ours[0].name,
            before={one.id: known[one.id].to_dict() for one in ours if one.id in known},
            after={one.id: one.to_dict() for one in ours},
            why=why,
        )


def _cause(of: Incident) -> tuple[str, str, int, str]:
    return of.side, of.kind, of.version, of.column


def _is_drift_of(incident: Incident, baseline: Baseline) -> bool:
    return incident.kind == "drift" and (incident.side, incident.version) == (baseline.side, baseline.version)
