"""Buffer rows by version and hour, write each group as one file, and retry while the storage is unavailable.

Owns when files are written, their names, what is dropped when too much is pending, and the counts. Knows nothing of
requests or threads: ``step`` does what is due and returns when to call it next. ``add`` may be called from another
thread.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.errors import StorageError
from raymlops.predictions.paths import prediction_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.predictions.schema import Partition
    from raymlops.storage.store import Namer, Store

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log

FILE_ROWS = 50_000
FILE_BYTES = 32 * 1024 * 1024
"""A file of this size is written before ``flush_s``."""
MAX_PENDING_BYTES = 256 * 1024 * 1024
"""Limit while the storage is unavailable: few rows of large tensors can fill the memory."""
REMIND_S = 60.0
_MAX_BACKOFF_S = 30.0
_MAX_CHUNKS = 64


def encode(table: pa.Table) -> pa.Buffer:
    """Return a table as the bytes of one Parquet file, with checksums."""
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, **PARQUET)
    return stream.getvalue()


PARQUET: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


@dataclass(eq=False)
class _File:
    """Rows that become one file. It accepts more until the first attempt to write it, which fixes its name."""

    where: Partition
    since: float
    tables: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    size: int = 0
    path: str | None = None

    def takes(self, where: Partition, table: pa.Table, *, max_rows: int) -> bool:
        """Return whether more rows fit."""
        fits = self.rows + table.num_rows <= max_rows and self.size + table.nbytes <= FILE_BYTES
        return fits and self.path is None and self.where == where and self.tables[0].schema == table.schema

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        self.tables.append(table)
        self.rows += table.num_rows
        self.size += table.nbytes
        if len(self.tables) > _MAX_CHUNKS:
            self.tables = [pa.concat_tables(self.tables).combine_chunks()]


class Spool:
    """One writer's pending predictions of a model."""

    def __init__(
        self, name: str, names: Namer, *, flush_s: float, max_pending_rows: int, clock: Callable[[], float]
    ) -> None:
        self.flush_s = flush_s
        self.max_pending_rows = max_pending_rows
        self.written = 0
        self.dropped = 0
        self.longest_write_s = 0.0
        self._name = name
        self._names = names
        self._clock = clock
        self._lock = threading.Lock()
        self._files: list[_File] = []
        self._writing: _File | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._reminded_at = float("-inf")

    @property
    def pending_rows(self) -> int:
        """Return how many rows are pending."""
        return sum(file.rows for file in list(self._files))

    def add(self, tables: Mapping[Partition, pa.Table]) -> bool:
        """Add rows; return whether ``step`` should be called earlier than it returned."""
        now = self._clock()
        with self._lock:
            was_empty = not self._files
            for where, table in tables.items():
                file = next((file for file in self._files if file.takes(where, table, max_rows=self._file_rows)), None)
                if file is None:
                    file = _File(where, now)
                    self._files.append(file)
                file.add(table)
            self._trim()
            return was_empty or self._full()

    def step(self, store: Store, *, force: bool = False) -> float | None:
        """Write what is due; return the seconds until more is, None where nothing is pending.

        ``force`` writes everything, due or not, even right after a failed attempt.
        """
        while True:
            with self._lock:
                wait = 0.0 if force and self._files else self._wait_s()
                if wait is None or wait > 0:
                    return wait
                self._writing = file = self._files[0]
                if file.path is None:
                    file.path = f"{prediction_folder(self._name, *file.where)}/{self._names.next()}"
            done = self._write(store, file)
            with self._lock:
                self._writing = None
                if done:
                    if file in self._files:  # it may have been dropped meanwhile
                        self._files.remove(file)
                else:
                    self._trim()
                    return max(0.0, self._retry_at - self._clock())

    def give_up(self) -> None:
        """Drop pending rows."""
        with self._lock:
            self._drop(self._files[:])

    def drop(self, rows: int) -> None:
        """Count rows that never became a table."""
        with self._lock:
            self.dropped += rows

    def _wait_s(self) -> float | None:
        if not self._files:
            return None
        now = self._clock()
        if self._failures:
            return self._retry_at - now
        return 0.0 if self._full() else self._files[0].since + self.flush_s - now

    @property
    def _file_rows(self) -> int:
        # Whole files are dropped, so each is a fraction of what may be pending.
        return min(FILE_ROWS, max(1, self.max_pending_rows // 8))

    def _full(self) -> bool:
        rows, size = self._waiting()
        return not self._failures and (rows >= self._file_rows or size >= FILE_BYTES)

    def _waiting(self) -> tuple[int, int]:
        return sum(file.rows for file in self._files), sum(file.size for file in self._files)

    def _write(self, store: Store, file: _File) -> bool:
        assert file.path is not None
        start = time.perf_counter()
        try:
            store.write(file.path, encode(pa.concat_tables(file.tables)))
        except StorageError as error:
            # The next attempt writes the same file: this one may have been stored although it failed.
            self._failures += 1
            self._retry_at = self._clock() + min(_MAX_BACKOFF_S, 2.0 ** (self._failures - 1))
            self._remind(f"{error.message}; {self.pending_rows} rows are pending, {self.dropped} were dropped")
            return False
        except Exception:
            logger.exception("the prediction log could not write %d rows", file.rows)
            self.drop(file.rows)
            return True
        if self._failures:
            logger.info("the prediction log recovered; %d rows were dropped", self.dropped)
        self._failures = 0
        self.written += file.rows
        self.longest_write_s = max(self.longest_write_s, time.perf_counter() - start)
        return True

    def _trim(self) -> None:
        rows, size = self._waiting()
        oldest = []
        for file in self._files:
            if rows <= self.max_pending_rows and size <= MAX_PENDING_BYTES:
                break
            if file is not self._writing:  # it may still succeed
                oldest.append(file)
                rows, size = rows - file.rows, size - file.size
        self._drop(oldest)

    def _drop(self, files: list[_File]) -> None:
        for file in files:
            self._files.remove(file)
            self.dropped += file.rows
        if files:
            self._remind(f"too much is pending; {self.dropped} rows were dropped")

    def _remind(self, text: str) -> None:
        now = self._clock()
        if now - self._reminded_at >= REMIND_S:
            self._reminded_at = now
            logger.warning("prediction log: %s", text)
