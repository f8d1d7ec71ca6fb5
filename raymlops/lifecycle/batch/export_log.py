"""Export days of a model's prediction log into a Delta table: which days, and which of them stay as they are there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time
from functools import partial
from typing import TYPE_CHECKING

from raymlops.errors import UsageError
from raymlops.lifecycle.batch.outputs import refuse_other_files
from raymlops.lifecycle.live.log_owner import read_from
from raymlops.lifecycle.prediction_log import ERASURES, stored_log
from raymlops.lifecycle.sources import state_id, state_of
from raymlops.records import Record

if TYPE_CHECKING:
    from raymlops.config.schema import ProjectSpec
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
    """Days before the log's retention, and those of which the log has no rows and nobody erased any: of these the table
    may have more rows than the log; they stay as they are."""
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
        erased_at = max((event.ts for event in state.events(name) if event.action in ERASURES), default=_NEVER)
    days = {day: datetime.combine(day, time(), UTC) for day in days_between(since, until)}
    every = [
        write_day(reading, day, table.uri, owner=owner, erased=erased_at >= start)
        for day, start in days.items()
        if kept_since is None or start >= kept_since
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
