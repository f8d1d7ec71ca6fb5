"""Export whole days of the log into a Delta table, of which each day is a partition.

A day is written by one commit, which takes the place of what the table had of it: run again it is there once, with the
labels that came since, and without the rows that were erased. Knows nothing of how long rows are kept.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.errors import RefusedError, UsageError
from raymlops.predictions.export.files import conform, union
from raymlops.predictions.labelled import key_hashes
from raymlops.storage import filesystem
from raymlops.storage.delta.commit import NewFile, TableWriter, columns_in, load_own
from raymlops.storage.delta.names import TableName
from raymlops.storage.delta.snapshot import read_snapshot
from raymlops.storage.locate import unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date

    import numpy.typing as npt

    from raymlops.predictions.read import Reading
    from raymlops.storage.delta.snapshot import TableFile

DATE = "date"
"""The column of the day, by UTC, which partitions the table."""
_KEY = ["request_id", "row", "model_version"]
"""What tells rows apart: several versions may answer a request."""


@dataclass(frozen=True)
class DayExport:
    """What the table has of a day."""

    day: date
    rows: int = 0
    labelled: int = 0
    table_version: int | None = None
    """None where nothing was written."""
    left: bool = False
    """Whether the table has rows of the day that the log lacks, more than were erased since: they stay."""
    damaged: tuple[str, ...] = ()
    """Files of the log that cannot be read; what the table has of the day is as it was."""


def days_between(since: datetime, until: datetime) -> list[date]:
    """Return the days by UTC of the first time and all that follow it and have ended by the second, in order."""
    first, end = (moment.astimezone(UTC).date() for moment in (since, until))
    return [first + timedelta(days=number) for number in range((end - first).days)]


def write_day(reading: Reading, day: date, uri: str, *, owner: str, erased: int = 0) -> DayExport:
    """Write the rows of a day, of the state ``owner``, into the table at ``uri``, which is created if there is none.

    ``reading`` has the log; its window is not used. A day of which the table has rows that the log lacks stays,
    unless so many were ``erased``: a log that was moved, restored without its rows, or cut by its retention lacks some.

    Raises:
        RefusedError: the table is not an export of this log.
        UsageError: a field has another type than in the table, or this asks what cannot be done.
        StorageError: the log cannot be read, or the table not written; it is as it was.
    """
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    rows = replace(reading, since=start, until=start + timedelta(days=1), limit=None)
    work, partition = f"raymlops.predictions.{reading.name}.{owner}", {DATE: day.isoformat()}
    there = _columns_of(uri, work)
    schema = _together(there, rows.schemas(), uri)
    writer = TableWriter(uri, schema.append(pa.field(DATE, pa.date32())), partitioned_by=(DATE,), replaces=True)
    path = f"{DATE}={day}/part-{uuid.uuid4().hex}.parquet"
    place = filesystem.join(uri, *path.split("/"))
    known = _Known(_files_of(uri, day) if there else ())
    with filesystem.create(place) as file, pq.ParquetWriter(file, schema, compression="zstd") as parquet:
        for batch in rows:
            known.take(batch)
            parquet.write_batch(conform(batch, schema))
    files = [NewFile(path, int(filesystem.info(place).size), rows.rows, partition)] if rows.rows else []
    if rows.damaged or not files:
        filesystem.delete(place)
    if rows.damaged:
        return DayExport(day, damaged=rows.damaged)
    if known.missing > erased or not (known or files):
        if files:
            filesystem.delete(place)
        return DayExport(day, left=len(known) > 0)
    about = {"raymlops.name": reading.name, "raymlops.day": day.isoformat(), "raymlops.rows": str(rows.rows)}
    try:
        version = writer.commit(files, work=work, about=about, partition=partition)
    except (UsageError, RefusedError):  # after any other error the commit may have been made
        filesystem.delete(place)
        raise
    return DayExport(day, rows.rows, rows.labelled, version)


class _Known:
    """The rows that the table has of a day, by request id, number and version, and how many of each the log has."""

    def __init__(self, files: Sequence[TableFile]) -> None:
        """Read them; eight bytes are kept of each.

        Raises:
            StorageError: a file cannot be read.
        """
        hashes = [each for file in files for each in _hashes_in(file.uri)]
        self._hashes, self._left = np.unique(np.concatenate([np.empty(0, np.int64), *hashes]), return_counts=True)

    def __len__(self) -> int:
        return len(self._hashes)

    def take(self, batch: pa.RecordBatch) -> None:
        """Note that the log has these rows."""
        if len(self):
            asked = _hashes(batch)
            places = np.minimum(np.searchsorted(self._hashes, asked), len(self) - 1)
            np.subtract.at(self._left, places[self._hashes[places] == asked], 1)

    @property
    def missing(self) -> int:
        """Return how many the log does not have."""
        return int(np.maximum(self._left, 0).sum())


def _files_of(uri: str, day: date) -> list[TableFile]:
    """Return the table's files of a day.

    Raises:
        UsageError: the table has deletion vectors.
        StorageError: the storage does not answer.
    """
    return read_snapshot(TableName(uri, partitions=((DATE, day.isoformat()),)))[1]


def _hashes_in(uri: str) -> Iterator[npt.NDArray[np.int64]]:
    store, path = filesystem.open_filesystem(uri)
    try:
        with pq.ParquetFile(path, filesystem=store) as file:
            yield from map(_hashes, file.iter_batches(columns=_KEY))
    except (OSError, pa.ArrowException) as error:
        raise unreadable(uri, error) from error


def _hashes(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    version = np.asarray(batch["model_version"].fill_null(0), dtype=np.int64)
    return key_hashes(batch["request_id"], batch["row"]) ^ (version << 32)


def _columns_of(uri: str, work: str) -> pa.Schema:
    """Return the columns of the table but the day's; none where there is no table.

    Raises:
        RefusedError: something else wrote it.
    """
    table = load_own(uri, work)
    if table is None:
        return pa.schema([])
    return pa.schema([field for field in columns_in(table, uri) if field.name != DATE])


def _together(there: pa.Schema, schemas: Iterator[pa.Schema], uri: str) -> pa.Schema:
    """Return one schema for the rows of the table and new ones."""

    def each() -> Iterator[pa.Schema]:
        yield there
        yield from schemas

    try:
        return union(each())
    except UsageError as error:
        raise UsageError(
            f"the log does not fit the Delta table {uri!r}: {error.message}",
            hint="Export to another table from now on.",
        ) from error
