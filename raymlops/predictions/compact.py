"""Merge the small files of past hours into few large ones, and remove hours beyond their retention.

Owns the order of those steps: a merged file is published, read back, and only then are the files removed that it
replaces. Interrupted anywhere, nothing is lost or counted twice; the next call completes it. Writers may keep writing,
also into past hours; only one compaction may run at a time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.errors import StorageError
from raymlops.predictions.partition import BATCH_ROWS, MERGED, Faults, Live, open_file, sources_metadata, survey
from raymlops.predictions.paths import label_days, prediction_hours
from raymlops.predictions.spool import PARQUET
from raymlops.records import Record
from raymlops.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

GRACE = timedelta(minutes=5)
"""How long writers may finish a past hour before it is merged. Later rows go into further files."""
MERGED_ROWS = 1_000_000
MERGED_BYTES = 256 * 1024 * 1024
_GROUP_ROWS = 65_536
_GROUP_BYTES = 32 * 1024 * 1024
"""Rows are buffered up to this before they are written, which bounds the memory of a merge."""


@dataclass(frozen=True)
class CompactRecord(Record):
    """The result of one compaction."""

    name: str
    folders: int
    """Past hours and days that were changed."""
    merged: int
    """Small files that were merged."""
    into: int
    """Files that they were merged into."""
    rows: int
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class RetainRecord(Record):
    """Which hours of predictions and days of labels were removed."""

    name: str
    before: str
    removed: tuple[str, ...]


@dataclass
class _Work:
    merged: int = 0
    into: int = 0
    rows: int = 0
    faults: Faults = field(default_factory=Faults)


def compact(
    uri: str,
    name: str,
    *,
    now: datetime,
    since: datetime | None = None,
    open_store: Callable[[str], Store] = Store,
) -> CompactRecord:
    """Merge the small files of every past hour of predictions and every past day of labels.

    ``since`` skips older ones, which saves listing each of them on an object store.

    Raises:
        StorageError: the storage cannot be used; completed merges are kept.
    """
    store, work, folders = open_store(uri), _Work(), 0
    for folder in (*prediction_hours(store, name), *label_days(store, name)):
        if folder.end + GRACE <= now and (since is None or folder.end > since):
            folders += _compact_folder(store, folder.path, work)
    return CompactRecord(name, folders, work.merged, work.into, work.rows, tuple(sorted(work.faults.damaged)))


def retain(uri: str, name: str, *, before: datetime) -> RetainRecord:
    """Remove the hours of predictions and days of labels that ended by ``before``.

    A label arrives after its prediction, so no label is removed whose prediction is kept.

    Raises:
        StorageError: the storage cannot be used; some may have been removed.
    """
    store = Store(uri)
    old = [folder for folder in (*prediction_hours(store, name), *label_days(store, name)) if folder.end <= before]
    for folder in old:
        store.remove(folder.path)
        for parent in folder.parents():
            store.remove_empty(parent)
    return RetainRecord(name, before.astimezone(UTC).isoformat(), tuple(folder.path for folder in old))


class _DamagedError(Exception):
    def __init__(self, live: Live, error: Exception) -> None:
        super().__init__(str(error))
        self.live = live


def _compact_folder(store: Store, folder: str, work: _Work) -> bool:
    found, replaced = survey(store, folder, work.faults)
    for name in replaced:  # a previous compaction was interrupted
        store.remove(f"{folder}/{name}")
    for name in store.files(folder):
        if name.startswith("."):  # of an interrupted writer; one that is still writing retries
            store.remove(f"{folder}/{name}")
    done = bool(replaced)
    for group in _groups(store, folder, [live for live in found if not _is_large(live)], work.faults):
        while len(group.files) > 1:
            try:
                _merge(store, folder, group, work)
            except _DamagedError as error:
                work.faults.add(f"{folder}/{error.live.name}", error)
                group.files = [(live, rows) for live, rows in group.files if live is not error.live]
                continue
            done = True
            break
    return done


def _is_large(live: Live) -> bool:
    rows = sum(count for _, count in live.sources)
    return bool(live.sources) and (rows > MERGED_ROWS // 2 or live.size > MERGED_BYTES // 2)


@dataclass
class _Group:
    schema: pa.Schema
    files: list[tuple[Live, int]]


def _groups(store: Store, folder: str, found: Sequence[Live], faults: Faults) -> Iterator[_Group]:
    """Yield groups of files to merge: of one schema, in order, up to the size of a merged file."""
    group: _Group | None = None
    rows = size = 0
    for live in found:
        path = f"{folder}/{live.name}"
        try:
            with open_file(store, path, size=live.size) as file:
                schema, count = file.schema_arrow, file.metadata.num_rows
        except FileNotFoundError:
            continue
        except (OSError, pa.ArrowException) as error:
            faults.add(path, error)
            continue
        fits = rows + count <= MERGED_ROWS and size + live.size <= MERGED_BYTES
        if group is None or not fits or not group.schema.equals(schema):
            if group is not None:
                yield group
            group, rows, size = _Group(schema, []), 0, 0
        group.files.append((live, count))
        rows, size = rows + count, size + live.size
    if group is not None:
        yield group


def _merge(store: Store, folder: str, group: _Group, work: _Work) -> None:
    sources = [source for live, rows in group.files for source in live.sources or ((live.name, rows),)]
    replaces = frozenset[str]().union(*({live.name} | live.replaces for live, _ in group.files))
    # The same files give the same name, so that a retry replaces the file of the first attempt.
    digest = hashlib.sha256("\n".join(sorted(replaces)).encode()).hexdigest()[:16]
    path = f"{folder}/{group.files[0][0].name.partition('-')[0]}-{digest}{MERGED}"
    with store.create(path) as stream, pq.ParquetWriter(stream, group.schema, **PARQUET) as writer:
        for table in _row_groups(store, folder, group):
            writer.write_table(table, row_group_size=table.num_rows)
        writer.add_key_value_metadata(sources_metadata(sources, sorted(replaces)))
    rows = sum(count for _, count in sources)
    _check(store, path, rows=rows)
    for name in replaces:
        store.remove(f"{folder}/{name}")
    work.merged, work.into, work.rows = work.merged + len(group.files), work.into + 1, work.rows + rows


def _row_groups(store: Store, folder: str, group: _Group) -> Iterator[pa.Table]:
    gathered: list[pa.RecordBatch] = []
    rows = size = 0
    for live, _ in group.files:
        for batch in _batches(store, folder, live):
            gathered.append(batch)
            rows, size = rows + batch.num_rows, size + batch.nbytes
            if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
                yield pa.Table.from_batches(gathered, group.schema)
                gathered, rows, size = [], 0, 0
    if gathered:
        yield pa.Table.from_batches(gathered, group.schema)


def _batches(store: Store, folder: str, live: Live) -> Iterator[pa.RecordBatch]:
    try:
        with open_file(store, f"{folder}/{live.name}", size=live.size) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS)
    except (OSError, pa.ArrowException) as error:
        raise _DamagedError(live, error) from error


def _check(store: Store, path: str, *, rows: int) -> None:
    """Read a merged file back.

    Raises:
        StorageError: it differs from what was written; nothing was removed.
    """
    try:
        with open_file(store, path, size=MERGED_BYTES) as file:
            got = file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{path} in {store.uri!r} cannot be read back: {error}") from error
    if got != rows:
        raise StorageError(f"{path} in {store.uri!r} has {got} rows; {rows} were written")
