"""What a run has to say to MLflow, on its way there: one background thread, one request at a time, nothing twice.

Owns the order, the pace, the wait while MLflow is away and what that may cost. Knows nothing of events or workers.

Nothing is written twice, for two reasons. Steps of a name only grow: one at or below its last step, which a run that
goes on from a checkpoint gives again, is left out. And whether a request whose answer was lost has been carried out is
asked before anything is sent again.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Literal

from raymlops.errors import TrackingError
from raymlops.tracking.client import METRIC_BATCH, metric_key, now_ms, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from raymlops.records import MetricPoint
    from raymlops.tracking.client import Tracker

FLUSH_EVERY_S = 2.0
MAX_PENDING = 200_000
"""Points that wait while MLflow is away: about 40 MB."""
FIRST_RETRY_S = 0.5
MAX_RETRY_S = 15.0
TELL_AFTER_S = 2.0
SECOND_WAIT_S = 5.0
DROPPED = "raymlops.dropped_points"
"""Tag: how many points were lost, because MLflow was away for too long."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Outbox:
    """Carries points and tags of one run to MLflow. ``last_steps`` are those that the run has already, by name.

    No method but ``finish`` waits for MLflow.
    """

    def __init__(
        self,
        tracker: Tracker,
        run_id: str,
        *,
        last_steps: Mapping[str, int] | None = None,
        dropped: int = 0,
        clock: Callable[[], float] = time.monotonic,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self.dropped = dropped
        """Points that were lost."""
        self._tracker = tracker
        self._run_id = run_id
        self._clock = clock
        self._max_pending = max_pending
        self._last_steps = dict(last_steps or {})
        self._points: deque[MetricPoint] = deque()
        self._tags: dict[str, str] = {}
        self._news: list[str] = []
        self._ending: tuple[Status, int] | None = None
        self._ended = False
        self._given_up = False
        self._next_s = -math.inf
        self._failures = 0
        self._error: TrackingError | None = None
        self._thread: threading.Thread | None = None
        # Guards all of the above, and is never held while MLflow is asked.
        self._changed = threading.Condition()

    def put(self, points: Iterable[MetricPoint], tags: Mapping[str, str] | None = None) -> int:
        """Take in points and tags, and return how many of the points are new."""
        taken = 0
        with self._changed:
            if self._ended:
                return 0
            for name, value, step, ms in points:
                key = metric_key(name)
                if step > self._last_steps.get(key, -math.inf):
                    self._last_steps[key] = step
                    self._points.append((key, float(value), step, ms))
                    taken += 1
            self._tags.update(tags or {})
            self._bound()
            if self._points or self._tags:
                self._wake()
        return taken

    def news(self) -> list[str]:
        """Return what is to be told since the last call: an outage, its end, points that were lost."""
        with self._changed:
            news, self._news = self._news, []
        return news

    def finish(
        self,
        status: Status,
        *,
        tags: Mapping[str, str],
        wait_s: float,
        tell: Callable[[str], None],
    ) -> None:
        """Write what is left and how the run ended, and end the thread.

        Raises:
            TrackingError: MLflow refuses it, or did not take it within ``wait_s`` seconds, or a few where it was waited
                for already.
        """
        with self._changed:
            self._tags.update(tags)
            self._ending = (status, now_ms())
            self._next_s, self._error, self._ended = -math.inf, None, False
            wait_s = min(wait_s, SECOND_WAIT_S) if self._given_up else wait_s
            self._given_up = False
            thread = self._wake()
        started_s = time.monotonic()
        told = False
        while not self._waited(started_s + (wait_s if told else min(wait_s, TELL_AFTER_S))):
            if told or wait_s <= TELL_AFTER_S or self._refused():
                raise self._give_up(wait_s)
            told = True
            tell(f"MLflow has not answered yet: waiting up to {wait_s:.0f} s for it to take what this run has to say")
        thread.join()

    def _waited(self, until_s: float) -> bool:
        """Wait until the run is ended, or it is clear that it will not be; return whether it is."""
        with self._changed:
            while not self._ended:
                left_s = until_s - time.monotonic()
                if left_s <= 0 or self._refused():
                    return False
                self._changed.wait(left_s)
        return True

    def _refused(self) -> bool:
        return self._error is not None and refused(self._error)

    def _give_up(self, wait_s: float) -> TrackingError:
        with self._changed:
            # A request in flight may go on; the thread does nothing after it.
            self._given_up = True
            self._changed.notify_all()
            left, error = len(self._points), self._error
        why = (
            f"MLflow at {self._tracker.shown_uri} did not answer for {wait_s:.0f} s" if error is None else error.message
        )
        lost = TrackingError(f"{why}; {left} points of the run {self._run_id} are not written")
        lost.__cause__ = error
        return lost

    def _wake(self) -> threading.Thread:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"raymlops-outbox-{self._run_id[:8]}", daemon=True)
            self._thread.start()
        self._changed.notify_all()
        return self._thread

    def _work(self) -> None:
        """Send what there is, at its pace, until the run has ended or nobody waits for that any more."""
        while True:
            with self._changed:
                while not self._given_up and (wait_s := self._wait_s()) != 0:
                    self._changed.wait(wait_s)
                if self._given_up:
                    self._thread = None
                    return
            try:
                ended = self._exchange()
            except Exception as error:
                self._failed(error)
                continue
            if ended:
                return

    def _wait_s(self) -> float | None:
        """Return the seconds until the next request; None: until there is something to send."""
        if not self._points and not self._tags and self._ending is None:
            return None
        full = len(self._points) >= METRIC_BATCH or self._ending is not None
        if full and not self._failures:
            return 0
        return max(0.0, self._next_s - self._clock())

    def _exchange(self) -> bool:
        """Send one batch, and the run's end after the last one; return whether it ended."""
        if self._failures:
            self._tracker.check()
            self._forget(self._tracker.last_steps(self._run_id))
        with self._changed:
            points = [self._points.popleft() for _ in range(min(METRIC_BATCH, len(self._points)))]
            tags, self._tags = self._tags, {}
        try:
            if points or tags:
                self._tracker.log_batch(self._run_id, points, tags)
        except BaseException:
            with self._changed:
                self._points.extendleft(reversed(points))
                self._tags = {**tags, **self._tags}
                self._bound()
            raise
        with self._changed:
            if self._failures:
                self._news.append("MLflow answers again: what waited is being written")
            self._failures, self._error = 0, None
            self._next_s = self._clock() + FLUSH_EVERY_S
            ending = None if self._points or self._tags else self._ending
        if ending is None:
            return False
        self._tracker.end_run(self._run_id, ending[0], end_time_ms=ending[1])
        with self._changed:
            # Another end may have been asked for meanwhile: an interrupt while the first one was on its way.
            if self._points or self._tags or self._ending is not ending:
                return False
            self._ended, self._thread = True, None
            self._changed.notify_all()
        return True

    def _forget(self, written: Mapping[str, int]) -> None:
        """Drop what MLflow has already: a request may be carried out and its answer lost."""
        with self._changed:
            self._points = deque(point for point in self._points if point[2] > written.get(point[0], -math.inf))

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, TrackingError):
            lost = TrackingError(f"writing the run {self._run_id} to MLflow failed: {error!r}")
            lost.__cause__ = error
            error = lost
        with self._changed:
            if not self._failures:
                self._news.append(f"MLflow does not take metrics, which are kept until it does: {error.message[:200]}")
            self._failures += 1
            self._error = error
            # Somebody waits for the end: a try costs little then.
            longest_s = FLUSH_EVERY_S if self._ending is not None else MAX_RETRY_S
            self._next_s = self._clock() + min(FIRST_RETRY_S * 2.0 ** (self._failures - 1), longest_s)
            self._changed.notify_all()

    def _bound(self) -> None:
        """Drop the oldest points where too many wait."""
        over = len(self._points) - self._max_pending
        if over <= 0:
            return
        if not self.dropped:
            self._news.append(
                f"MLflow has been away for so long that {self._max_pending} points wait; the oldest are dropped"
            )
        for _ in range(over):
            self._points.popleft()
        self.dropped += over
        self._tags[DROPPED] = str(self.dropped)
