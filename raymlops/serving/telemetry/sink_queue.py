"""A bounded queue between the request path and the telemetry sinks: metrics, access log, traces, prediction log.

Owns one daemon thread, the bound of the queue, and the isolation of requests and sinks from a failing sink. Knows
nothing of what the sinks do with a request.

The thread passes on a chunk of requests and then sleeps for a moment. Python preempts a thread only after 5 ms; one
that sleeps releases the interpreter at once, so that the event loop never waits longer than for one chunk.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.predictions.served import RequestRecord

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log

CHUNK = 50
"""Requests per chunk: 0.2 ms of the light sinks together."""
PAUSE_S = 0.0005
"""Between two chunks: 50 requests each 0.7 ms are 70,000 a second, far more than a replica answers."""
CLOSE_S = 10.0
"""Deadline for flushing when a replica closes, for all of its recorders together."""
_REPEAT_S = 60.0
"""Minimum interval between log lines of a failing sink."""


class Sink(Protocol):
    """A consumer of records. Used by one thread only, unless its class says otherwise."""

    def take(self, batch: Sequence[RequestRecord]) -> None:
        """Record a few requests. Called at least once per period, with an empty batch when there were none."""

    def close(self) -> None:
        """Flush and release all resources; called once, after the last ``take``."""


class Recorder:
    """Pass served requests to the sinks, in a thread of its own.

    ``add`` never waits: with ``max_pending`` requests queued it drops the newest and counts it. Without ``close``, the
    recorder closes when the interpreter exits. A forked child gets no thread: its requests are dropped once
    ``max_pending`` are queued, and nothing is written twice.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        period_s: float,
        max_pending: int,
        name: str,
        chunk: int = CHUNK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped = 0
        """Requests that were dropped because the queue was full."""
        self.errors = 0
        """How often a sink raised, which loses that batch for it."""
        self._sinks = tuple(sinks)
        self._period_s = period_s
        self._most = max_pending
        self._chunk = chunk
        self._clock = clock
        self._pending: deque[RequestRecord] = deque()
        self._logged: dict[int, tuple[float, int]] = {}
        # Unlike an Event's set(), put() may be called by a finalizer that interrupts this thread's own get().
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"recorder-{name}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def add(self, served: RequestRecord) -> None:
        """Queue one request. Never waits, never raises."""
        if len(self._pending) >= self._most:
            self.dropped += 1
        else:
            self._pending.append(served)

    def stop(self) -> None:
        """Accept no more requests and start to end, without waiting; ``close`` waits."""
        self._most = 0
        self._wake.put(None)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Flush the queue, close the sinks, and end the thread; a second call does nothing.

        Returns after ``timeout_s`` also when a sink hangs, whose thread then ends with the process. Requests still
        queued by then are logged and counted as dropped.
        """
        self.stop()
        atexit.unregister(self.close)
        # The garbage collector may close a replica in this very thread, which then ends by itself.
        if self._closed or self._thread is threading.current_thread():
            return
        self._closed = True
        self._thread.join(max(0.0, timeout_s))
        if self._thread.is_alive():
            lost = len(self._pending)
            self.dropped += lost
            text = "%s did not end within %.3g s; %d requests of it may be lost"
            logger.warning(text, self._thread.name, timeout_s, lost)

    def _run(self) -> None:
        """Drain every period until woken up to end, then once more."""
        closing = False
        while not closing:
            try:
                self._wake.get(timeout=self._period_s)
                closing = True
            except Empty:
                pass
            self._drain(pause_s=0.0 if closing else PAUSE_S)
        for sink in self._sinks:
            self._guarded(sink, sink.close)

    def _drain(self, *, pause_s: float) -> None:
        left = len(self._pending)  # later requests wait for the next period, so that this one ends
        while True:
            batch = [self._pending.popleft() for _ in range(min(left, self._chunk))]
            left -= len(batch)
            for sink in self._sinks:
                self._guarded(sink, sink.take, batch)
            if left <= 0:
                return
            if pause_s:
                time.sleep(pause_s)

    def _guarded(self, sink: Sink, call: Callable[..., None], *batch: Sequence[RequestRecord]) -> None:
        try:
            call(*batch)
        except Exception:
            self.errors += 1
            now = self._clock()
            last, before = self._logged.get(id(sink), (now - _REPEAT_S, self.errors - 1))
            if now - last >= _REPEAT_S:
                self._logged[id(sink)] = (now, self.errors)
                logger.exception(
                    "%s failed, which affects no request; %d failures of sinks since the last line",
                    type(sink).__name__,
                    self.errors - before,
                )
