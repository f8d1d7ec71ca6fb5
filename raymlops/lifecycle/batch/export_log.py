"""Export days of a model's prediction log into a Delta table: which days, and which of them stay as they are there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time
from functools import partial
from typing import TYPE_CHECKING

from raymlops.errors import StorageError, UsageError
from raymlops.lifecycle.batch.outputs import refuse_other_files
from raymlops.lifecycle.live.log_owner import read_from
from raymlops.lifecycle.prediction_log import ERASURES, stored_log
from raymlops.lifecycle.sources import state_id, state_of
from raymlops.records import Record
from raymlops.storage.filesystem import absolute

if TYPE_CHECKING:
    from datetime import date

    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.prediction_log import StoredLog
    from raymlops.storage.delta.names import TableName


_OURS = re.compile(r"date=\d{4}-\d{2}-\d{2}|\..*")
_NEVER = datetime(1, 1, 1, tzinfo=UTC)


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
    """Days before the log's retention, those of which the log has no rows and nobody erased any, and those of which
    another storage has rows too: of these the table may have more rows than the log; they stay as they are."""
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
        refuse_other_files(table.uri, _OURS)
    owner = state_id(spec)
    reading = Reading(read_from(name, spec.storage.path, partial(state_id, spec)), name)
    with state_of(spec) as state:
        log = stored_log(state, name)
        kept_since = None if log is None else log.kept_since(state.now())
        elsewhere = set() if log is None else _days_elsewhere(log, reading.uri, since=since, until=until)
        erased_at = max((event.ts for event in state.events(name) if event.action in ERASURES), default=_NEVER)
    days = {day: datetime.combine(day, time(), UTC) for day in days_between(since, until)}
    every = [
        write_day(reading, day, table.uri, owner=owner, erased=erased_at >= start)
        for day, start in days.items()
        if day not in elsewhere and (kept_since is None or start >= kept_since)
    ]
    done = [each for each in every if each.table_version is not None]
    looked = {each.day for each in every if not each.left}
    return ExportRecord(
        name=name,
        table=table.uri,
        days=tuple(each.day.isoformat() for each in done),
        rows=sum(each.rows for each in done),
        labelled=sum(each.labelled for each in done),
        table_version=done[-1].table_version if done else None,
        left=tuple(day.isoformat() for day in days if day not in looked),
        damaged=tuple(path for each in every for path in each.damaged),
    )


def _days_elsewhere(log: StoredLog, here: str, *, since: datetime, until: datetime) -> set[date]:
    """Return the days by UTC of which another storage has rows of this state: those on which the log was moved.

    Where one cannot be asked, the first day of the log that is read is taken for one of these.

    Raises:
        StorageError: the log that is read cannot be used.
    """
    from raymlops.predictions.owner import owner_of
    from raymlops.predictions.paths import first_hour, prediction_hours
    from raymlops.storage.store import Store

    own, first = owner_of(Store(here), log.name), first_hour(Store(here), log.name)
    days: set[date] = set()
    is_known = not log.unreachable
    for uri in log.distinct:
        try:
            if absolute(uri) == absolute(here) or (own is not None and own == owner_of(Store(uri), log.name)):
                continue
            days |= {hour.start.date() for hour in prediction_hours(Store(uri), log.name, since=since, until=until)}
        except StorageError:
            is_known = False
    return days if is_known or first is None else {*days, first.date()}
