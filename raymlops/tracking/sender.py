"""The background sender to MLflow: one thread, one request at a time, the run that has waited longest first.

Owns the order, the batches, the retries with backoff while MLflow is unavailable, and how much may be pending. Knows
nothing of what is logged, nor of trainings and sweeps.

A request that failed may have been carried out. So before anything is sent again, the run is looked up where its
creation failed, and read: only what MLflow lacks is sent.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

from raymlops.errors import NotFoundError, TrackingError
from raymlops.tracking.client import METRIC_BATCH, now_ms
from raymlops.tracking.failures import refused, said
from raymlops.tracking.pending import DROPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from raymlops.records import Artifact, MetricPoint
    from raymlops.tracking.client import Tracker
    from raymlops.tracking.pending import PendingRun, RunStatus

FLUSH_EVERY_S = 3.0
MAX_PENDING = 200_000
"""Points that are buffered while MLflow is unavailable: about 40 MB."""
FIRST_RETRY_S = 0.5
MAX_RETRY_S = 15.0
CLOSING_RETRY_S = 1.0
MAX_REJECTIONS = 3
"""Rejections in a row before a request is given up: MLflow reports a lost connection to its database as one, too."""
TELL_AFTER_S = 2.0
SECOND_WAIT_S = 5.0
"""How long ``finish`` waits after an earlier call has timed out."""


class Sender:
    """Sends runs to MLflow in the background. No method but ``finish`` waits for MLflow.

    ``on_closed`` gets each run that is complete, or was deleted in MLflow. Attributes are guarded by ``changed``, which
    is notified of every change and never held during a request.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        on_closed: Callable[[PendingRun, bool], None] = lambda _run, _deleted: None,
        clock: Callable[[], float] = time.monotonic,
        max_pending: int = MAX_PENDING,
        max_retry_s: float = MAX_RETRY_S,
    ) -> None:
        self.changed = threading.Condition()
        self.open: dict[str, PendingRun] = {}
        """Runs that are not closed, by name."""
        self.failing: set[str] = set()
        """Names of the runs whose last request failed."""
        self._tracker = tracker
        self._on_closed = on_closed
        self._clock = clock
        self._max_pending, self._max_retry_s = max_pending, max_retry_s
        self._notices: list[str] = []
        self._overflowed = False
        self._failures = 0
        self._paused_until_s = self._progress_s = -math.inf
        self._error: Exception | None = None
        self._rejection: TrackingError | None = None
        self._closing = False
        self._given_up = False
        self._thread: threading.Thread | None = None

    def put(self, run: PendingRun, points: Iterable[MetricPoint] = (), tags: Mapping[str, str] | None = None) -> int:
        """Log points and tags with the next batch of a run; return the number of points that are new."""
        with self.changed:
            if self._closing and run.name not in self.open:
                return 0
            new = run.new(points)
            if run.recoverable and (run.dropped or not self.has_room()):
                # The last step in MLflow says what it has: after a point that is lost, the rest waits for a replay.
                run.dropped += len(new)
            else:
                run.add(new)
                over = len(run.points) - self._max_pending
                if over > 0 and not run.recoverable:
                    run.drop_oldest(over)
                    self._overflow("the oldest are dropped")
            run.tags.update(tags or {})
            if run.has_batch:
                self.schedule(run, -math.inf if len(run.points) >= METRIC_BATCH else run.flush_s)
            return len(new)

    def attach(self, run: PendingRun, artifact: Artifact) -> None:
        """Log an artifact of a run, after those before it."""
        with self.changed:
            if not self._closing or run.name in self.open:
                self._notices += run.artifacts.add(artifact)
                self.schedule(run)

    def end(
        self,
        run: PendingRun,
        status: RunStatus,
        *,
        tags: Mapping[str, str] | None = None,
        kept: Mapping[str, float] | None = None,
        at_ms: int | None = None,
    ) -> None:
        """End a run, with these last tags, once everything pending has been sent.

        ``kept`` are the metrics of the model that is kept: MLflow then shows and orders by them, not by the last ones.
        """
        with self.changed:
            run.kept = dict(kept or {})
            run.tags.update(tags or {})
            if run.dropped:
                run.tags[DROPPED] = str(run.dropped)
            run.ending = (status, now_ms() if at_ms is None else at_ms)
            self.schedule(run)

    def schedule(self, run: PendingRun, due_s: float = -math.inf) -> None:
        """Let the thread look at a run, now or at ``due_s``."""
        self.open[run.name] = run
        run.due_s = min(run.due_s, max(due_s, run.not_before_s, self._clock()))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="raymlops-mlflow-sender", daemon=True)
            self._thread.start()
        self.changed.notify_all()

    def has_room(self) -> bool:
        """Return whether more points may be buffered; the first time that they may not becomes a notice."""
        if sum(len(run.points) for run in self.open.values()) < self._max_pending:
            return True
        self._overflow("no more are kept")
        return False

    def notices(self) -> list[str]:
        """Return what happened since the last call: an outage, a recovery, data that was lost."""
        with self.changed:
            notices, self._notices = self._notices, []
        return notices

    def finish(
        self,
        *,
        wait_s: float,
        patient: bool = False,
        tell: Callable[[str], None] = lambda _text: None,
        hint: str | None = None,
    ) -> None:
        """Send everything and end the thread. A ``patient`` caller waits until MLflow accepts nothing for ``wait_s``.

        Raises:
            TrackingError: MLflow rejected something, or did not accept everything within ``wait_s`` seconds.
        """
        with self.changed:
            wait_s = min(wait_s, SECOND_WAIT_S) if self._given_up else wait_s
            self._closing, self._given_up, self._error = True, False, None
            self._failures, self._paused_until_s = 0, -math.inf
            for run in self.open.values():
                run.rejections.clear()
                run.not_before_s = -math.inf
                self.schedule(run)
            self.changed.notify_all()
        if wait_s > TELL_AFTER_S and not self._drained(TELL_AFTER_S, patient=patient):
            tell(f"MLflow has not answered yet: waiting up to {wait_s:.0f} s to flush what is pending")
        if not self._drained(wait_s, patient=patient):
            self._give_up(wait_s, hint)
        rejection, self._rejection = self._rejection, None
        if rejection is not None:
            raise rejection

    def abandon(self) -> None:
        """Send nothing more after a request in flight, and end the thread."""
        with self.changed:
            self._closing = self._given_up = True
            self.changed.notify_all()

    def _drained(self, wait_s: float, *, patient: bool) -> bool:
        """Wait until every run is closed; return whether they are."""
        started_s = time.monotonic()
        with self.changed:
            while self.open:
                since_s = max(self._progress_s, started_s) if patient else started_s
                left_s = since_s + wait_s - time.monotonic()
                if left_s <= 0:
                    return False
                self.changed.wait(left_s)
        return True

    def _give_up(self, wait_s: float, hint: str | None) -> NoReturn:
        with self.changed:
            # A request in flight is not cancelled; the thread sends nothing after it.
            self._given_up = True
            self.changed.notify_all()
            behind = [run for run in self.open.values() if run.has_batch or run.ending]
            lost = sum(len(run.points) for run in behind)
            cause = self._error
        why = said(cause) if cause else f"MLflow at {self._tracker.shown_uri} did not answer within {wait_s:.0f} s"
        what = f"{behind[0].name} is" if len(behind) == 1 else f"{len(behind)} runs are"
        raise TrackingError(f"{why}; {what} incomplete in MLflow: {lost} points are not written", hint=hint) from cause

    def _overflow(self, consequence: str) -> None:
        if not self._overflowed:
            self._overflowed = True
            self._notices.append(f"MLflow is unavailable, and {self._max_pending} points are pending: {consequence}")

    def _settle(self, run: PendingRun) -> None:
        """Note that MLflow accepted a request of a run."""
        run.failures, run.not_before_s = 0, -math.inf
        run.rejections.clear()
        self._failures, self._paused_until_s, self._progress_s = 0, -math.inf, time.monotonic()
        if run.name in self.failing:
            self.failing.discard(run.name)
            if not self.failing:
                self._error = None
                self._notices.append("MLflow accepts data again: sending what was buffered")
        self.changed.notify_all()

    def _failed(self, runs: Sequence[PendingRun], error: Exception, *, repeatable: bool = False) -> None:
        """Note that a request of these runs failed; the next one reads what it did, unless it is ``repeatable``."""
        if not self.failing:
            self._notices.append(f"MLflow accepts no data; it is buffered until it does: {said(error)}")
        self._error = error
        longest_s = min(self._max_retry_s, CLOSING_RETRY_S) if self._closing else self._max_retry_s
        refusal = isinstance(error, NotFoundError) or (isinstance(error, TrackingError) and refused(error))
        if not refusal or any(run.unchecked for run in runs):
            self._failures += 1
            pause_s = min(FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10), longest_s)
            self._paused_until_s = self._clock() + pause_s
        for run in runs:
            self.failing.add(run.name)
            retry_s = min(FIRST_RETRY_S * 2.0 ** min(run.failures, 10), longest_s)
            if refusal and not run.unchecked:  # it counts only where the server was well before it
                run.rejections.append(error)
                retry_s = longest_s
            else:
                run.rejections.clear()
                run.unread = run.unread or not repeatable
            run.failures += 1
            run.unchecked = True
            run.not_before_s = self._clock() + retry_s
            self.schedule(run)

    def _close(self, run: PendingRun, *, deleted: bool = False) -> None:
        """Forget a run."""
        run.clear()
        del self.open[run.name]
        self._on_closed(run, deleted)
        self._settle(run)
        if self._closing and len(self.open) == 1:
            self.schedule(next(iter(self.open.values())))  # its last step may have waited for this

    def _next(self) -> PendingRun | None:
        """Wait for the next run that is due; None when the thread is to end."""
        with self.changed:
            while not self._given_up and (self.open or not self._closing):
                run = min(self.open.values(), key=lambda run: run.due_s, default=None)
                wait_s = None
                if run is not None and run.due_s < math.inf:
                    wait_s = max(run.due_s, self._paused_until_s) - self._clock()
                    if wait_s <= 0:
                        run.due_s = math.inf
                        return run
                self.changed.wait(wait_s)
            self._thread = None
            return None

    # Below, the thread, which takes the lock only between requests.

    def _work(self) -> None:
        while (run := self._next()) is not None:
            self._work_on(run)

    def _work_on(self, run: PendingRun) -> None:
        """Send what is due of a run."""
        try:
            while not self._given_up and self._step(run):
                pass
        except Exception as error:
            with self.changed:
                self._failed([run], error)

    def _step(self, run: PendingRun) -> bool:
        """Send the next request of a run; return whether another one may follow."""
        if self.open.get(run.name) is not run:
            return False
        if run.unchecked:
            self._tracker.check()
            run.unchecked = False
            if len(run.rejections) >= MAX_REJECTIONS and (run.recoverable or self._closing):
                self._drop_rejected(run)
        elif run.run_id is None:
            assert run.create is not None
            run_id = run.create(run.failures > 0)
            with self.changed:
                run.run_id = run_id
        elif run.unread:
            self._read(run, run.run_id)
        elif self._batch_due(run):
            self._send(run, run.run_id)
        elif run.artifacts:
            why_lost = run.artifacts.write_first(self._tracker, run.run_id)
            with self.changed:
                self._notices += run.artifacts.remove_first(why_lost)
                self._settle(run)
        elif run.ending is not None:
            self._send_end(run, run.run_id, ending=run.ending)
        elif self._closing and (run.last_step is None or len(self.open) == 1):
            if run.last_step is not None:
                run.last_step()
            with self.changed:
                self._close(run)
        else:
            if run.failures:
                with self.changed:
                    self._settle(run)
            return False
        return True

    def _batch_due(self, run: PendingRun) -> bool:
        """Return whether the next batch is to be sent now; if it is to be sent later, schedule it."""
        with self.changed:
            if not run.has_batch:
                return False
            now = self._closing or run.ending is not None or len(run.points) >= METRIC_BATCH
            if not now and self._clock() < run.flush_s:
                self.schedule(run, run.flush_s)
                return False
            return True

    def _send(self, run: PendingRun, run_id: str) -> None:
        with self.changed:
            batch = run.take()
        self._tracker.log_batch(run_id, batch.points, batch.tags, params=batch.params)
        with self.changed:
            run.sent(batch)
            run.flush_s = self._clock() + FLUSH_EVERY_S
            self._settle(run)

    def _send_end(self, run: PendingRun, run_id: str, *, ending: tuple[RunStatus, int]) -> None:
        self._tracker.end_run(run_id, ending[0], end_time_ms=ending[1])
        with self.changed:
            # It may have been given another end meanwhile, or have been resumed.
            if run.ending is ending and not run.has_batch and not run.artifacts:
                self._close(run)

    def _read(self, run: PendingRun, run_id: str) -> None:
        """Learn what MLflow has of a run, and reopen it if it resumes."""
        found = self._active(run_id)
        if found is None:
            self._gone(run)
            return
        if run.reopens and (found.info.status != "RUNNING" or any(tag in found.data.tags for tag in run.reopens)):
            self._tracker.reopen_run(run_id, without_tags=run.reopens)
        with self.changed:
            run.learn(found)
            run.unread, run.reopens = False, ()

    def _drop_rejected(self, run: PendingRun) -> None:
        """Continue without what MLflow rejects."""
        if run.run_id is not None and self._active(run.run_id) is None:
            self._gone(run)
            return
        with self.changed:
            self._reject(run)
            run.incomplete = True
            run.rejections.clear()
            if run.run_id is not None and run.params:
                run.params = {}
            elif run.run_id is not None and run.has_batch:
                run.clear()
            else:
                self._close(run)

    def _gone(self, run: PendingRun) -> None:
        """Send nothing more to a run that was deleted."""
        with self.changed:
            self._notices.append(f"{run.name} was deleted in MLflow: nothing more is written to it")
            if not run.recoverable:
                self._reject(run)
            self._close(run, deleted=True)

    def _reject(self, run: PendingRun) -> None:
        if self._rejection is None:
            cause = run.rejections[0] if run.rejections else TrackingError("it was deleted")
            self._rejection = TrackingError(f"MLflow rejected part of {run.name}: {said(cause)}")
            self._rejection.__cause__ = cause

    def _active(self, run_id: str) -> Any | None:
        try:
            run = self._tracker.run(run_id)
        except NotFoundError:
            return None
        return run if run.info.lifecycle_stage == "active" else None
