"""The thread that tells MLflow of a sweep's trials: one request at a time, the trial that waits longest first.

Owns the order, the pace, the wait while MLflow is away, and that no request leaves a second run behind: a run that may
have been made is looked for before it is made again, and all are looked at once more at the end. A short trial takes
three requests. Knows nothing of what is said of a trial (``children``).
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from raymlops.errors import NotFoundError, TrackingError
from raymlops.tracking.client import METRIC_BATCH, now_ms, refused
from raymlops.training.runs.writer import REASON
from raymlops.tuning.mlflow.trial_run import TRIAL, TRIAL_STATUS, WAITING, ChildRun, by_trial

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.tracking.client import Tracker
    from raymlops.tuning.mlflow.trial_run import Batch, Seen

FLUSH_S = 3.0
"""So long at most a trial's parameters and metrics are gathered."""
RETRY_S = 30.0
CLOSING_RETRY_S = 1.0
REFUSALS = 3
"""So often a no is said before it is believed: MLflow calls a broken connection to its database a bad request, too."""
PARENT = -1


class Sender:
    """Sends what waits in ``open`` and ``parent``. Whoever touches its attributes holds ``changed``."""

    def __init__(
        self,
        tracker: Tracker,
        *,
        parent_run_id: str,
        make: Callable[[ChildRun], str],
        clock: Callable[[], float],
        retry_s: float,
    ) -> None:
        self.changed = threading.Condition()
        self.open: dict[int, ChildRun] = {}
        self.seen: dict[int, Seen] = {}
        self.parent = ChildRun(PARENT, now_ms(), run_id=parent_run_id)
        self.pending = 0
        """Points that wait."""
        self.troubled: set[int] = set()
        """Numbers of those whose last request failed."""
        self.news: list[str] = []
        self._tracker = tracker
        self._parent_run_id = parent_run_id
        self._make_run = make
        self._clock = clock
        self._retry_s = retry_s
        self._due: list[tuple[float, int, ChildRun]] = []
        self._order = itertools.count()
        self._failures = 0
        self._paused_until_s = -math.inf
        self._taken_s = -math.inf
        self._error: Exception | None = None
        self._refusal: Exception | None = None
        self._closing = False
        self._done = False
        self._given_up = False
        self._thread: threading.Thread | None = None

    def run_id(self, number: int) -> str | None:
        """Return the run of a trial, as far as it is known."""
        child, known = self.open.get(number), self.seen.get(number)
        return child.run_id if child is not None else known.run_id if known is not None else None

    def look_at(self, child: ChildRun, due_s: float | None = None) -> None:
        """Let the thread look at a child, at the latest then; None: now."""
        due_s = self._clock() if due_s is None else max(due_s, self._clock())
        if due_s < child.due_s:
            child.due_s = due_s
            heapq.heappush(self._due, (due_s, next(self._order), child))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="raymlops-children", daemon=True)
            self._thread.start()
        self.changed.notify_all()

    def finish(self, *, wait_s: float, patient: bool) -> None:
        """Send everything, all of which has ended, look at all runs once more, and end the thread.

        Raises:
            TrackingError: MLflow did not take everything.
        """
        with self.changed:
            self._closing, self._done, self._given_up = True, False, False
            self._failures, self._paused_until_s = 0, -math.inf
            for child in (*self.open.values(), self.parent):
                self.look_at(child)
            started_s = time.monotonic()
            while not self._done:
                since_s = max(self._taken_s, started_s) if patient else started_s
                left_s = since_s + wait_s - time.monotonic()
                if left_s <= 0:
                    # A request in flight may go on; the thread does nothing after it.
                    self._given_up = True
                    self.changed.notify_all()
                    raise self._lost(wait_s)
                self.changed.wait(left_s)
            if self._refusal is not None:
                raise self._lost(wait_s)

    def _lost(self, wait_s: float) -> TrackingError:
        cause = self._refusal or self._error
        said = "" if cause is None else f": {_message(cause)}"
        if self._refusal is not None:
            lost = TrackingError(f"MLflow refused what a trial gave{said}")
        else:
            lost = TrackingError(
                f"MLflow at {self._tracker.shown_uri} did not answer within {wait_s:.0f} s: "
                f"it lacks some of {len(self.open)} trials{said}",
                hint="Resume the sweep once MLflow answers: its runs are brought up to date from the study.",
            )
        lost.__cause__ = cause
        return lost

    def _next(self) -> ChildRun | None:
        """Wait for the next child to look at; None: there will be none."""
        while not (self._given_up or self._done):
            while self._due and self._due[0][0] != self._due[0][2].due_s:
                heapq.heappop(self._due)  # it was looked at earlier
            wait_s = None
            if self._due:
                wait_s = max(self._due[0][0], self._paused_until_s) - self._clock()
                if wait_s <= 0:
                    child = heapq.heappop(self._due)[2]
                    child.due_s = math.inf
                    return child
            self.changed.wait(wait_s)
        self._thread = None
        return None

    def _settle(self, child: ChildRun) -> None:
        """Note that MLflow answered about a child."""
        child.failures, child.refusal = 0, None
        self._failures, self._paused_until_s, self._taken_s = 0, -math.inf, time.monotonic()
        if child.number in self.troubled:
            self.troubled.discard(child.number)
            if not self.troubled:
                self._error = None
                self.news.append("MLflow takes what trials give again: what waited is being written")
        self.changed.notify_all()

    def _failed(self, child: ChildRun, error: Exception) -> None:
        if not self.troubled:
            self.news.append(f"MLflow does not take what trials give, which waits until it does: {_message(error)}")
        self.troubled.add(child.number)
        self._error = error
        answered = isinstance(error, NotFoundError) or (isinstance(error, TrackingError) and refused(error))
        child.refusal = error if answered else None
        child.failures += 1
        self._failures += 1
        retry_s = min(self._retry_s, CLOSING_RETRY_S) if self._closing else self._retry_s
        if self._failures > 1:  # one alone may be the child's own trouble
            self._paused_until_s = self._clock() + retry_s
        self.look_at(child, self._clock() + retry_s)

    def _forget(self, child: ChildRun) -> None:
        """Keep of a child only what is to be remembered for good."""
        self.pending -= len(child.take().points)
        self._settle(child)
        if child is self.parent:
            return
        del self.open[child.number]
        known = child.seen()
        if known is not None:
            self.seen[child.number] = known
        if self._closing and not self.open:
            self.look_at(self.parent)

    # From here on without the lock: the thread.

    def _work(self) -> None:
        """Send what is due: of one child as far as it goes, then of the next."""
        while True:
            with self.changed:
                child = self._next()
            if child is None:
                return
            try:
                while not self._given_up and self._step(child):
                    with self.changed:
                        self._settle(child)
                if child is self.parent and self._closing and not (self.open or self._given_up):
                    self._look_over()
            except Exception as error:
                with self.changed:
                    self._failed(child, error)

    def _step(self, child: ChildRun) -> bool:
        """Send the next request that is due of a child, and return whether there was one."""
        if child is not self.parent and self.open.get(child.number) is not child:
            return False
        if child.refusal is not None and child.failures >= REFUSALS:
            self._give_way(child, child.refusal)
        elif child.run_id is None:
            self._make(child)
        elif child.unread:
            self._read(child, child.run_id)
        elif (batch := self._take(child)) is not None:
            self._send(child, child.run_id, batch)
        elif (ending := child.ending) is not None:
            self._tracker.end_run(child.run_id, ending[0], end_time_ms=ending[1])
            with self.changed:
                if child.ending is ending:
                    self._forget(child)
        else:
            return False
        return True

    def _make(self, child: ChildRun) -> None:
        """Make the run of a child, or find the one that a request without an answer has made."""
        if child.asked:
            made = self._tracker.children_of(self._parent_run_id, tags={TRIAL: str(child.number)})
            if made:
                with self.changed:
                    child.run_id, child.unread = by_trial(made)[child.number][0].info.run_id, True
                return
        child.asked = True
        run_id = self._make_run(child)
        with self.changed:
            child.run_id = run_id

    def _read(self, child: ChildRun, run_id: str) -> None:
        """Learn what MLflow has of a child, and open its run again where it goes on."""
        run = self._active(run_id)
        if run is None:
            self._gone(child)
            return
        if child.reopens and (run.info.status != "RUNNING" or TRIAL_STATUS in run.data.tags):
            self._tracker.reopen_run(run_id, without_tags=(TRIAL_STATUS, REASON))
        with self.changed:
            self.pending -= len(child.points)
            child.learn(run)
            self.pending += len(child.points)
            child.unread = child.reopens = False

    def _take(self, child: ChildRun) -> Batch | None:
        """Return what is to be sent of a child now, or look at it again later."""
        with self.changed:
            if not child.waits:
                return None
            early = self._closing or child.ending is not None or len(child.points) >= METRIC_BATCH
            if not early and self._clock() < child.flush_s:
                self.look_at(child, child.flush_s)
                return None
            self.pending -= len(child.points)
            return child.take()

    def _send(self, child: ChildRun, run_id: str, batch: Batch) -> None:
        try:
            self._tracker.log_batch(run_id, batch.points, batch.tags, params=batch.params)
        except BaseException:
            with self.changed:
                self.pending += len(batch.points)
                child.put_back(batch)
            raise
        with self.changed:
            child.flush_s = self._clock() + FLUSH_S

    def _give_way(self, child: ChildRun, refusal: Exception) -> None:
        """Go on without what MLflow refuses, or without the run where somebody has deleted it."""
        if self._active(child.run_id or self._parent_run_id) is None:
            self._gone(child)
            return
        with self.changed:
            self._refusal = self._refusal or refusal
            child.trial_status = ""
            if child.run_id is not None and child.params:
                child.params = {}
            elif child.run_id is not None and child.waits:
                self.pending -= len(child.take().points)
            else:
                self._forget(child)
                self._done = child is self.parent and self._closing

    def _gone(self, child: ChildRun) -> None:
        """Write no more to a run that somebody has deleted."""
        with self.changed:
            whose = "the sweep" if child is self.parent else f"trial {child.number}"
            self.news.append(f"the run {child.run_id} of {whose} was deleted: nothing more is written to it")
            self._forget(child)
            self.seen.pop(child.number, None)
            self._done = child is self.parent and self._closing

    def _active(self, run_id: str) -> Any | None:
        try:
            run = self._tracker.run(run_id)
        except NotFoundError:
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _look_over(self) -> None:
        """See to it that each trial has one run, and that none is said to run: nothing does when its sweep has ended.

        MLflow's client repeats requests by itself (3.17): a run may have been made twice, and nobody told.
        """
        for number, runs in by_trial(self._tracker.children_of(self._parent_run_id)).items():
            ours = self.seen.get(number)
            kept = next((run for run in runs if ours is not None and run.info.run_id == ours.run_id), runs[0])
            for run in runs:
                if run is not kept:
                    self._tracker.delete_run(run.info.run_id)
            if kept.info.status != "RUNNING":
                continue
            if ours is not None and ours.ending is not None:
                self._tracker.end_run(kept.info.run_id, ours.ending)
            else:
                self._tracker.set_tags(kept.info.run_id, {TRIAL_STATUS: WAITING})
                self._tracker.end_run(kept.info.run_id, "KILLED")
        with self.changed:
            self._settle(self.parent)
            self._done = True
            self.changed.notify_all()


def _message(error: Exception) -> str:
    return error.message[:300] if isinstance(error, TrackingError) else repr(error)[:300]
