"""Export days of a model's prediction log into a Delta table: which days, and which of them stay as they are there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time
from functools import partial
from typing import TYPE_CHECKING

from raymlops.errors import UsageError
from raymlops.lifecycle.batch.outputs import check_new_table
from raymlops.lifecycle.live.log_owner import read_from
from raymlops.lifecycle.prediction_log import ERASE, ERASED, stored_log
from raymlops.lifecycle.sources import state_id, state_of
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import date

    from raymlops.config.schema import ProjectSpec
    from raymlops.state.audit import AuditEvent
    from raymlops.storage.delta.names import TableName

EXPORT = "predictions.export"
"""Action of the event of an export: the table and its days, and the newest event when it began (``seen``)."""
_OURS = re.compile(r"date=\d{4}-\d{2}-\d{2}(?:/part-[0-9a-f]{32}\.parquet)?|\..*")


@dataclass(frozen=True)
class ExportRecord(Record):
    """Days of a log that a Delta table has now."""

    name: str
    table: str
    days: tuple[str, ...]
    rows: int
    labelled: int
    table_version: int | None
    """None where there was no day."""
    left: tuple[str, ...] = ()
    """Days before the log's retention, and those of which the table has rows that the log lacks, more than were erased
    since they were exported last: they stay as they are."""
    damaged: tuple[str, ...] = ()
    """Files of the log that cannot be read; what the table has of their days is as it was."""


def export_log(name: str, spec: ProjectSpec, table: TableName, *, since: datetime, until: datetime) -> ExportRecord:
    """Write each day by UTC, from that of ``since``, which has ended by ``until``, into the table.

    Raises:
        NotFoundError: no such model has predictions.
        UsageError: a version of the table is named, a folder has other files, or a field has another type than in it.
        RefusedError: the table is not an export of this log.
        StorageError: the log cannot be read, or the table not written; days before are there.
    """
    from raymlops.predictions.export.table import days_between, write_day
    from raymlops.predictions.read import Reading
    from raymlops.storage.delta.tables import has_table

    if not table.whole:
        raise UsageError(f"{table} is a version or a part of a Delta table", hint="Name the table alone.")
    if not has_table(table.uri):
        check_new_table(table.uri, _OURS)
    owner = state_id(spec)
    reading = Reading(read_from(name, spec.storage.path, partial(state_id, spec)), name)
    days = {day: datetime.combine(day, time(), UTC) for day in days_between(since, until)}
    with state_of(spec) as state:
        log = stored_log(state, name)
        kept_since = None if log is None else log.kept_since(state.now())
        events = state.events(name, actions=(EXPORT, ERASE, ERASED))
    erased = _erased(events, table.uri, days)
    every = [
        write_day(reading, day, table.uri, owner=owner, erased=erased[day])
        for day, start in days.items()
        if kept_since is None or start >= kept_since
    ]
    done = [each for each in every if each.table_version is not None]
    looked = {each.day for each in every if not each.left}
    record = ExportRecord(
        name=name,
        table=table.uri,
        days=tuple(each.day.isoformat() for each in done),
        rows=sum(each.rows for each in done),
        labelled=sum(each.labelled for each in done),
        table_version=done[-1].table_version if done else None,
        left=tuple(day.isoformat() for day in days if day not in looked),
        damaged=tuple(path for each in every for path in each.damaged),
    )
    if done:
        with state_of(spec) as state:
            seen = events[0].id if events else 0
            after = {"table": table.uri, "days": record.days, "rows": record.rows, "seen": seen}
            state.record(action=EXPORT, subject=name, after=after, why="requested")
    return record


def _erased(events: Sequence[AuditEvent], uri: str, days: Collection[date]) -> dict[date, int]:
    """Return how many rows of each day were erased since an export into the table began that had it.

    ``events`` are the newest first. An erasure that had not ended when the export began counts: its rows may have been
    read.
    """
    exports = [event.after for event in events if event.action == EXPORT and event.after["table"] == uri]
    erasures = [
        (event.before.get("days", {}), next((each.id for each in reversed(events[:at]) if each.action == ERASED), None))
        for at, event in enumerate(events)
        if event.action == ERASE
    ]
    found = {}
    for day in days:
        text = day.isoformat()
        seen = next((each["seen"] for each in exports if text in each["days"]), 0)
        found[day] = sum(each.get(text, 0) for each, ended in erasures if ended is None or ended > seen)
    return found
