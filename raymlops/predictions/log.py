"""The prediction log of one replica: answered requests, written as Parquet by a background thread.

Owns that thread and changes of settings while it runs. ``schema`` owns the rows, ``spool`` when they are written and
what happens while the storage is unavailable.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from raymlops.predictions.owner import Place
from raymlops.predictions.schema import is_answered, schema_of, to_tables
from raymlops.predictions.settings import unknown_redactions
from raymlops.predictions.spool import Spool, encode
from raymlops.storage import clock
from raymlops.storage.store import Namer, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa

    from raymlops.predictions.served import RequestRecord
    from raymlops.predictions.settings import LogSettings
    from raymlops.signature import Signature

logger = logging.getLogger("ray.serve.raymlops")

CLOSE_S = 8.0
"""How long closing waits for the storage: less than the caller of ``close`` waits, so that losses are counted."""
GRACE_S = 1.0
"""For a write in progress."""
_PIECE_ROWS = 2048
"""Converted at a time: larger pieces hold the interpreter for tens of milliseconds."""
RESTS, MOST_REST_S = 2.0, 0.02
"""How long the conversion rests after each piece: in its own time, and in seconds at most."""


class PredictionLog:
    """Stores every answered request, one row for each of its rows, below ``predictions/NAME`` of the storage.

    Refused and failed requests are not included. Nothing is lost by ``close``, nor while the storage is unavailable, up
    to ``max_pending_rows``; ``spool`` counts what is pending, written and lost.

    A kill -9 can lose requests answered in the last ``flush_s``, plus the period of the recorder that calls ``take``,
    plus the write in progress (10 to 180 ms to a disk of a busy machine, a round trip to an object store). Nothing
    older is lost, and no file is partial. Measured with flush_s 0.5 and a period of 0.25 s over 20 kills: the
    oldest row lost had been answered 0.76 s before, each within the sum of the three.
    """

    def __init__(
        self,
        settings: LogSettings,
        *,
        name: str,
        signature: Signature,
        writer: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = clock.now_s,
        open_store: Callable[[str], Store] = Store,
    ) -> None:
        self._settings = settings
        self._name = name
        self._signature = signature
        self._redact = self._redacted(settings)
        self._open_store = open_store
        self._place = Place(name, open_store=open_store, clock=clock)
        self._clock = clock
        self.spool = Spool(
            name,
            Namer(writer, now=now),
            flush_s=settings.flush_s,
            max_pending_rows=settings.max_pending_rows,
            clock=clock,
        )
        self._wake = threading.Event()
        self._closing_s: float | None = None
        self._thread: threading.Thread | None = None
        if settings.enabled:
            # A process's first file can take seconds: do it before the first requests.
            encode(schema_of(signature, redact=self._redact).empty_table())
            self._start()

    def configure(self, settings: LogSettings) -> None:
        """Change the settings; pending rows are written to the new location."""
        if settings != self._settings:
            self._redact = self._redacted(settings)
        self._settings = settings
        self.spool.flush_s, self.spool.max_pending_rows = settings.flush_s, settings.max_pending_rows
        if settings.enabled and self._thread is None:
            self._start()
        self._wake.set()

    def take(self, batch: Sequence[RequestRecord]) -> None:
        """Queue answered requests; returns before they are written."""
        settings = self._settings
        if not settings.enabled:
            return
        if self._closing_s is not None:
            self.spool.drop(_rows(batch))
            return
        for piece in pieces(batch):
            began = time.perf_counter()
            self._convert(piece, self._redact)
            # Nobody waits for this thread, and those that answer wait for the interpreter.
            time.sleep(min(RESTS * (time.perf_counter() - began), MOST_REST_S))

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Flush pending rows; those not written within ``timeout_s`` are dropped, counted and logged."""
        self._closing_s = timeout_s
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s + GRACE_S)  # a hanging write ends with the process
        before = self.spool.dropped
        self.spool.give_up()
        if self.spool.dropped > before:
            lost = self.spool.dropped - before
            logger.error("prediction log: %d rows were lost, not written within %g s of shutdown", lost, timeout_s)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name=f"predictions-{self._name}", daemon=True)
        self._thread.start()

    def _redacted(self, settings: LogSettings) -> frozenset[str]:
        """Return the fields to omit: all of them where a name is misspelt, until that is fixed.

        The intended field is unknown, and a value that was written cannot be withdrawn.
        """
        if not settings.enabled:
            return frozenset(settings.redact)
        unknown = unknown_redactions(settings.redact, self._signature)
        if not unknown:
            return frozenset(settings.redact)
        fields = [column.name for column in (*self._signature.inputs, *self._signature.outputs)]
        logger.error(
            "prediction log: serve.log.redact names %s, which is not a field of %s; NO features and outputs are "
            "written until that is fixed. Its fields: %s",
            ", ".join(unknown),
            self._name,
            ", ".join(fields),
        )
        return frozenset(fields)

    def _convert(self, piece: Sequence[RequestRecord], redact: frozenset[str]) -> None:
        try:
            tables = to_tables(piece, self._signature, name=self._name, redact=redact)
        except Exception:
            if len(piece) > 1:
                for served in piece:  # the others may be fine
                    self._convert([served], redact)
                return
            logger.warning("prediction log: a request does not fit the signature and is dropped", exc_info=True)
            self.spool.drop(_rows(piece))
            return
        if self.spool.add(tables):
            self._wake.set()

    def _work(self) -> None:
        wait: float | None = None
        while self._closing_s is None:
            self._wake.wait(wait)
            self._wake.clear()
            wait = self._step()
        deadline = self._clock() + self._closing_s
        self._wake.clear()
        while (wait := self._step(force=True)) is not None and self._clock() < deadline:
            self._wake.wait(min(wait, deadline - self._clock()))

    def _step(self, *, force: bool = False) -> float | None:
        try:
            return self.spool.step(_OwnStore(self._settings, self._place, self._open_store), force=force)
        except Exception:  # a thread that ended would lose all later rows
            logger.exception("prediction log")
            return 1.0


class _OwnStore(Store):
    """The storage in which the log is its state's own, which the first write looks up."""

    def __init__(self, settings: LogSettings, place: Place, open_store: Callable[[str], Store]) -> None:
        super().__init__(settings.uri)
        self._state = settings.state
        self._place = place
        self._open_store = open_store

    def write(self, path: str, data: pa.Buffer) -> None:
        """Write one file, which replaces what is there."""
        self._open_store(self._place.of(self.uri, self._state)).write(path, data)


def _rows(batch: Sequence[RequestRecord]) -> int:
    return sum(served.rows for served in batch if is_answered(served))


def pieces(batch: Sequence[RequestRecord]) -> Iterator[Sequence[RequestRecord]]:
    """Split a batch so that large requests do not hold the interpreter for long."""
    start = rows = 0
    for index, served in enumerate(batch):
        if index > start and rows + served.rows > _PIECE_ROWS:
            yield batch[start:index]
            start, rows = index, 0
        rows += served.rows
    if batch:
        yield batch[start:]
