"""Verdicts on windows of traffic, as they were written: what was judged of a model, and when.

Owns the record. A verdict is written by ``state.watch.incidents``, with all that follows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from raymlops.records import Record
from raymlops.state.schema import Time, drift_windows, incidents

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.state.database import Database

Side = Literal["inputs", "outputs"]
Kind = Literal["drift", "skew", "quality", "silence", "skill"]
"""What a window is judged for: ``quality`` and ``silence`` by the bounds of ``monitor.quality``, not by a reference;
``skill`` by labels, of the outputs of one version."""
BOUNDED: frozenset[Kind] = frozenset({"quality", "silence", "skill"})
"""A person can say of these that they are known, and not that they are normal."""
BROKEN: frozenset[Kind] = frozenset({"quality", "silence"})
"""Of what is served, that something is wrong with it: a reason not to train on it. Worse answers are none."""

ANY_VERSION = 0
"""Version of the inputs' drift, which is judged over all versions of a model."""


def about(side: Side, version: int) -> int:
    """Return the version that the drift of a side is about where that one answers."""
    return version if side == "outputs" else ANY_VERSION


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
    """The verdict's numbers and first ``columns``, and the columns that were ``refused``, both bounded; how many rows
    the window's ``stand_for``, which are more where the log is a sample. Of a window that is beyond a bound, the first
    that it is ``beyond``. Of skill, the sums of the ``window``, the ``verdict`` and what is known of its labels."""


def judged_windows(
    database: Database,
    name: str,
    *,
    since: datetime | None = None,
    kind: Kind | None = None,
    limit: int | None = None,
) -> list[JudgedWindow]:
    """Return the verdicts on a model's windows, newest first.

    All, those that start at ``since`` or later, those of one kind, or some.
    """
    table = drift_windows.c
    chosen = [] if kind is None else [table.kind == kind]
    chosen += [] if since is None else [table.start >= since]
    return _windows(database, table.name == name, *chosen, limit=limit)


def windows_of_version(
    database: Database, name: str, version: int, *, kind: Kind, since: datetime, until: datetime | None = None
) -> list[JudgedWindow]:
    """Return the verdicts of one kind on a version's windows that ended after ``since``, by ``until``, oldest first."""
    table = drift_windows.c
    ours = [table.name == name, table.kind == kind, table.version == version, table.stop > since]
    ours += [] if until is None else [table.stop <= until]
    return _windows(database, *ours)[::-1]


def _windows(database: Database, *chosen: sa.ColumnElement[bool], limit: int | None = None) -> list[JudgedWindow]:
    order = (drift_windows.c.start.desc(), drift_windows.c.side, drift_windows.c.kind)
    query = sa.select(drift_windows).where(*chosen).order_by(*order).limit(limit)
    with database.reading() as connection:
        return [JudgedWindow(**row) for row in connection.execute(query).mappings()]


def newest_window(
    database: Database, name: str, *, side: Side, version: int, kind: Kind = "drift", length_s: float | None = None
) -> JudgedWindow | None:
    """Return the newest window, of any length or of one, that was judged of a version, or of ``ANY_VERSION``."""
    table = drift_windows.c
    ours = (table.name == name, table.side == side, table.kind == kind, table.version == version)
    times = sa.select(table.start, table.stop).where(*ours).order_by(table.start.desc(), table.stop.desc())
    times = times.limit(1 if length_s is None else None)
    with database.reading() as connection:
        for start, stop in connection.execute(times):
            if length_s is None or (stop - start).total_seconds() == length_s:
                found = sa.select(drift_windows).where(*ours, table.start == start, table.stop == stop)
                return JudgedWindow(**connection.execute(found).mappings().one())
    return None


def first_start(
    database: Database, name: str, *, side: Side, version: int, judged_by: int, rows: int
) -> datetime | None:
    """Return the start of the first window with so many rows that a champion's version was judged by."""
    table = drift_windows.c
    query = sa.select(sa.func.min(table.start, type_=Time)).where(
        table.name == name,
        table.side == side,
        table.kind == "drift",
        table.version == version,
        table.judged_by == judged_by,
        table.rows >= rows,
    )
    with database.reading() as connection:
        found: datetime | None = connection.scalar(query)
        return found


def remove_windows(database: Database, *, before: datetime, rows: int) -> int:
    """Remove the verdicts on windows that began before a time; return how many these were.

    What later verdicts and messages depend on stays: skew, the last windows of open incidents, and the first window
    with so many ``rows`` that each version was judged by.

    Raises:
        StorageError, UnreachableError: the database cannot be written; nothing was removed.
    """
    table, each, removed = drift_windows.c, drift_windows.alias().c, 0
    with database.reading() as connection:
        names = connection.scalars(sa.select(table.name).where(table.start < before).distinct()).all()
    for name in names:
        first = sa.select(sa.func.min(each.start)).where(each.name == name, each.kind == "drift", each.rows >= rows)
        first = first.group_by(each.side, each.version, each.judged_by)
        open_ = sa.select(incidents.c.last_at).where(incidents.c.name == name, incidents.c.closed_at.is_(None))
        kept = sa.or_(table.start.in_(first), table.start.in_(open_))
        with database.writing() as connection:
            ours = (table.name == name, table.kind != "skew", table.start < before)
            old = sa.delete(drift_windows).where(*ours, sa.not_(kept))
            removed += connection.execute(old).rowcount
    return removed
