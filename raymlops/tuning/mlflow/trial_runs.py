"""The child runs of a sweep in MLflow: exactly one a trial, its parameters, its metrics, and how it ended.

Owns what is said of a trial, and how much may wait while MLflow is away. Nothing here but ``adopt``, ``run_id`` and
``close`` waits for MLflow: a slow one delays no trial, and one that does not answer stops none. Knows nothing of Ray
Tune or Optuna, nor of how things are sent (``childsender``).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from raymlops.tracking.client import METRIC_BATCH, now_ms
from raymlops.tracking.outbox import DROPPED
from raymlops.tracking.params import flatten
from raymlops.training.runs.writer import REASON
from raymlops.tuning.mlflow.sender import FLUSH_S, RETRY_S, Sender
from raymlops.tuning.mlflow.trial_run import RUN_STATUS, TRIAL, TRIAL_STATUS, WAITING, ChildRun, by_trial, seen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.records import TrialRecord, TrialStatus
    from raymlops.tracking.client import Tracker
    from raymlops.tuning.mlflow.trial_run import RunStatus

WAIT_S = 60.0
INTERRUPTED_WAIT_S = 10.0
"""How long ``close`` waits for an MLflow that takes nothing: the shorter one where the sweep was interrupted."""
MAX_PENDING = 200_000
"""Points that wait while MLflow is away: about 30 MB."""


class Children:
    """Writer of the child runs of one parent run."""

    def __init__(
        self,
        tracker: Tracker,
        *,
        experiment: str,
        parent_run_id: str,
        tags: Mapping[str, str],
        name: str,
        clock: Callable[[], float] = time.monotonic,
        retry_s: float = RETRY_S,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self._tracker = tracker
        self._experiment = experiment
        self._parent_run_id = parent_run_id
        self._tags = dict(tags)
        self._name = name
        self._clock = clock
        self._max_pending = max_pending
        self._overflown = False
        self._patience = True
        self._sender = Sender(tracker, parent_run_id=parent_run_id, make=self._make, clock=clock, retry_s=retry_s)
        # Guards whatever the sender's thread has, too, and is never held while MLflow is asked.
        self._changed = self._sender.changed

    def adopt(self) -> None:
        """Find the runs that the sweep has already, before any trial starts; of doubled ones one stays.

        Raises:
            TrackingError: MLflow does not answer.
        """
        for number, (run, *doubled) in by_trial(self._tracker.children_of(self._parent_run_id)).items():
            self._sender.seen[number] = seen(run)
            for other in doubled:
                self._tracker.delete_run(other.info.run_id)

    def start(self, number: int, params: Mapping[str, Any]) -> None:
        """Open the run of a trial, or open it again."""
        with self._changed:
            child = self._begin(number, params, started_ms=now_ms())
            child.reopens = child.unread
            child.flush_s = self._clock() + FLUSH_S
            self._sender.look_at(child)

    def log(self, number: int, *, epoch: int, metrics: Mapping[str, float], at_ms: int | None = None) -> None:
        """Note the metrics of an epoch (``at_ms``: None for now); those that MLflow has already are left out."""
        with self._changed:
            child = self._sender.open.get(number)
            if child is not None and child.ending is None:
                # Once a point is lost, so are those after it: what MLflow has is told by its last step.
                room = not child.dropped and self._has_room()
                self._note(child, metrics, epoch=epoch, ms=now_ms() if at_ms is None else at_ms, room=room)
                full = len(child.points) >= METRIC_BATCH
                self._sender.look_at(child, None if full else child.flush_s)

    def end(
        self,
        number: int,
        status: TrialStatus,
        *,
        reason: str = "",
        history: Mapping[int, Mapping[str, float]] | None = None,
    ) -> None:
        """Send what is left, and what of ``history`` (metrics by epoch) MLflow lacks, and close the run of a trial."""
        with self._changed:
            child = self._sender.open.get(number)
            if child is not None:
                self._finish(child, status, reason=reason, history=history or {}, ended_ms=now_ms())

    def suspend(self, number: int) -> None:
        """Send what is left and close the run of a trial that goes on when the sweep is resumed."""
        with self._changed:
            child = self._sender.open.get(number)
            if child is not None:
                child.tags[TRIAL_STATUS] = WAITING
                self._leave(child, "KILLED", ended_ms=now_ms())

    def mirror(self, record: TrialRecord, history: Mapping[int, Mapping[str, float]] | None = None) -> None:
        """Bring the run of a trial that has ended up to date; it is made where it is missing.

        Nothing is sent where MLflow has all of it, nor for a trial that another sweep ran: its run is there.
        """
        now, duration_ms = now_ms(), int(record.duration_s * 1000)
        with self._changed:
            known = self._sender.seen.get(record.number)
            if record.carried_from or (known is not None and known.fits(record.status)):
                return
            child = self._begin(record.number, record.params, started_ms=now - duration_ms)
            ended_ms = min(now, child.started_ms + duration_ms) if duration_ms else now
            self._finish(child, record.status, reason=record.reason, history=history or {}, ended_ms=ended_ms)

    def run_id(self, number: int, *, wait_s: float = 5.0) -> str | None:
        """Return the run of a trial, or None while MLflow has not answered, which is waited for once, not each time."""
        sender = self._sender
        with self._changed:
            if wait_s and self._patience:
                self._patience = bool(
                    self._changed.wait_for(
                        lambda: sender.run_id(number) or number not in sender.open or sender.troubled, timeout=wait_s
                    )
                )
            found = sender.run_id(number)
            self._patience = self._patience or found is not None
            return found

    def set_parent(self, tags: Mapping[str, str]) -> None:
        """Set tags of the sweep's own run, at the pace of the others."""
        with self._changed:
            self._sender.parent.tags.update(tags)
            self._sender.look_at(self._sender.parent, self._sender.parent.flush_s)

    def news(self) -> list[str]:
        """Return what is to be told since the last call: an outage, its end, what was lost."""
        with self._changed:
            news, self._sender.news = self._sender.news, []
        return news

    def close(self, *, wait_s: float = WAIT_S, patient: bool = True) -> None:
        """Write everything that is left, look at all runs once more, and end the thread.

        ``wait_s`` begins anew with all that MLflow takes; where not ``patient``, it is all the time there is.

        Raises:
            TrackingError: MLflow did not take everything.
        """
        with self._changed:
            for number, child in self._sender.open.items():
                if child.ending is None:
                    self.suspend(number)  # nothing runs on when its sweep has ended
        self._sender.finish(wait_s=wait_s, patient=patient)

    def _make(self, child: ChildRun) -> str:
        return self._tracker.start_run(
            self._experiment,
            name=f"{self._name}-{child.number}",
            tags={**self._tags, "raymlops.kind": "trial", TRIAL: str(child.number)},
            parent_run_id=self._parent_run_id,
            start_time_ms=child.started_ms,
        )

    def _begin(self, number: int, params: Mapping[str, Any], *, started_ms: int) -> ChildRun:
        """Return what is open of a trial: made, or from what MLflow has, which is read before anything is sent."""
        child, known = self._sender.open.get(number), self._sender.seen.get(number)
        if child is None:
            child = self._sender.open[number] = ChildRun(number, started_ms, params=flatten(dict(params)))
            if known is not None:
                child.run_id, child.started_ms, child.unread = known.run_id, known.started_ms, True
        elif child.ending is not None:
            child.ending, child.unread = None, True
            child.tags.pop(TRIAL_STATUS, None)
        return child

    def _has_room(self) -> bool:
        if self._sender.pending < self._max_pending:
            return True
        if not self._overflown:
            self._sender.news.append(f"MLflow is away, and {self._max_pending} points wait: no more are kept")
            self._overflown = True
        return False

    def _note(self, child: ChildRun, metrics: Mapping[str, float], *, epoch: int, ms: int, room: bool) -> None:
        points = child.new(metrics, step=epoch, ms=ms)
        if room:
            child.add(points)
            self._sender.pending += len(points)
        else:
            child.dropped += len(points)

    def _finish(
        self,
        child: ChildRun,
        status: TrialStatus,
        *,
        reason: str,
        history: Mapping[int, Mapping[str, float]],
        ended_ms: int,
    ) -> None:
        room = bool(history) and self._has_room()
        if room:
            child.dropped = 0  # the history has them
        for epoch in sorted(history):
            self._note(child, history[epoch], epoch=epoch, ms=ended_ms, room=room)
        child.trial_status = "" if child.dropped else status
        child.tags |= {TRIAL_STATUS: status} | ({REASON: reason} if reason else {})
        self._leave(child, RUN_STATUS[status], ended_ms=ended_ms)

    def _leave(self, child: ChildRun, status: RunStatus, *, ended_ms: int) -> None:
        if child.dropped:
            child.tags[DROPPED] = str(child.dropped)
        child.ending = (status, ended_ms)
        self._sender.look_at(child)
