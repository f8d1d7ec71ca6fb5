"""Publish one file in place of others of its folder: merged, or without rows that are erased.

Owns the order of the steps: the new file is published, read back, and only then are the files removed that it replaces.
Interrupted anywhere, nothing is lost or counted twice, and the next call completes it. Writers may keep writing
meanwhile; only one process at a time may rewrite the files of a log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.errors import StorageError
from raymlops.predictions.partition import BATCH_ROWS, MERGED, Live, open_file, sources_metadata
from raymlops.predictions.spool import PARQUET
from raymlops.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from raymlops.predictions.partition import Ranges

MERGED_ROWS = 1_000_000
MERGED_BYTES = 256 * 1024 * 1024
_GROUP_ROWS = 65_536
_GROUP_BYTES = 32 * 1024 * 1024
"""Rows are buffered up to this before they are written, which bounds the memory of a rewrite."""

Mask = npt.NDArray[np.bool_]
Matches = Callable[[pa.RecordBatch], Mask]
"""Returns which rows of a batch are to be erased."""


class FencedStore(Store):
    """A storage in which no file appears once ``check`` raises: another process may have replaced the same files."""

    def __init__(self, uri: str, *, check: Callable[[], None]) -> None:
        super().__init__(uri)
        self._check = check

    def write(self, path: str, data: pa.Buffer) -> None:
        """Write one file, which replaces what is there."""
        self._check()
        super().write(path, data)

    @contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        """Return a context with a stream whose content becomes a file at its end, and does not if that raises."""
        with super().create(path) as stream:
            yield stream
            self._check()


class DamagedError(Exception):
    """A file cannot be read."""

    def __init__(self, live: Live, error: Exception) -> None:
        super().__init__(str(error))
        self.live = live


@dataclass
class Group:
    """Files of one schema, with their rows, that become one."""

    schema: pa.Schema
    files: list[tuple[Live, int]]


def rewrite(store: Store, folder: str, group: Group, *, erase: Matches | None = None) -> int:
    """Replace files by one with their rows, without those to ``erase``; return how many it has.

    Raises:
        DamagedError: one of them cannot be read; nothing was changed.
        StorageError: the storage cannot be used, or the new file differs from what was written; no row was lost.
    """
    replaces = frozenset[str]().union(*({live.name} | live.replaces for live, _ in group.files))
    # The same files give the same name, so that a retry replaces the file of the first attempt.
    digest = hashlib.sha256("\n".join(sorted(replaces)).encode()).hexdigest()[:16]
    path = f"{folder}/{group.files[0][0].name.partition('-')[0]}-{digest}{MERGED}"
    sources: list[tuple[str, int]] = []
    erased: dict[str, Ranges] = {}
    with store.create(path) as stream, pq.ParquetWriter(stream, group.schema, **PARQUET) as writer:
        gathered = _Gathered(writer, group.schema)
        for live, rows in group.files:
            gone = np.zeros(rows, dtype=np.bool_)
            start = 0
            for batch in _batches(store, folder, live):
                stop = start + batch.num_rows
                if erase is not None:
                    gone[start:stop] = erase(batch)
                kept = batch if not gone[start:stop].any() else batch.filter(pa.array(~gone[start:stop]))
                gathered.add(kept)
                start = stop
            _account(live, gone, sources, erased)
        gathered.flush()
        writer.add_key_value_metadata(sources_metadata(sources, replaces, erased))
    total = sum(count for _, count in sources)
    _check(store, path, rows=total)
    for name in replaces:
        store.remove(f"{folder}/{name}")
    return total


class _Gathered:
    """Batches on their way into row groups of a useful size."""

    def __init__(self, writer: Any, schema: pa.Schema) -> None:
        self._writer = writer
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self._batches.append(batch)
            self._rows, self._bytes = self._rows + batch.num_rows, self._bytes + batch.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches, self._schema), row_group_size=self._rows)
        self._batches, self._rows, self._bytes = [], 0, 0


def _account(live: Live, gone: Mask, sources: list[tuple[str, int]], erased: dict[str, Ranges]) -> None:
    """Add what is left of each source of a file, and which of its rows were ever erased."""
    first = 0
    for source, rows in live.sources or ((live.name, len(gone)),):
        mine = gone[first : first + rows]
        known = live.erased.get(source, ())
        sources.append((source, rows - int(mine.sum())))
        if mine.any():
            before = [np.arange(start, stop) for start, stop in known]
            every = np.concatenate([np.zeros(0, np.int64), *before])
            left = np.delete(np.arange(rows + len(every)), every)
            known = _ranges(np.union1d(every, left[mine]))
        if known:
            erased[source] = known
        first += rows


def _ranges(places: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return ascending numbers as ranges."""
    runs: Sequence[npt.NDArray[np.int64]] = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]


def _batches(store: Store, folder: str, live: Live) -> Iterator[pa.RecordBatch]:
    try:
        with open_file(store, f"{folder}/{live.name}", size=live.size) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS)
    except (OSError, pa.ArrowException) as error:
        raise DamagedError(live, error) from error


def _check(store: Store, path: str, *, rows: int) -> None:
    """Read a new file back.

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
