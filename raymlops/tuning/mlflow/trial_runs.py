"""The child runs of a sweep in MLflow: exactly one per trial, with its parameters, metrics and final status.

Owns what is logged of a trial, which of two runs of one trial is kept, and what a resumed sweep completes. Nothing but
``adopt`` and ``close`` waits for MLflow. Knows nothing of Ray Tune and Optuna, nor of how data is sent.

A short trial takes three requests: create, log, end. To a database many trials are written in one transaction.
"""

from __future__ import annotations

import sys
import time
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from raymlops.tracking.bulk_sender import BulkSender
from raymlops.tracking.client import PARENT, now_ms, steps_of
from raymlops.tracking.params import flatten
from raymlops.tracking.pending import DROPPED, PendingRun
from raymlops.tracking.run_tables import NewRun
from raymlops.tracking.sender import FLUSH_EVERY_S, MAX_PENDING, MAX_RETRY_S, Sender
from raymlops.training.runs.writer import REASON
from raymlops.tuning.trial.reported_values import STEP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.records import TrialRecord, TrialStatus
    from raymlops.tracking.client import Tracker
    from raymlops.tracking.pending import RunStatus

WAIT_S = 60.0
INTERRUPTED_WAIT_S = 10.0
"""How long ``close`` waits for an MLflow that accepts nothing, and where the sweep was interrupted."""
RUN_STATUS: dict[TrialStatus, RunStatus] = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
TRIAL = "raymlops.trial"
TRIAL_STATUS = "raymlops.trial_status"
REPEAT_OF = "raymlops.repeat_of"
"""The trial whose configuration a repeat trains with another seed."""
NOTE = "mlflow.note.content"
PRUNED = "Pruned: {}. MLflow's status for that is KILLED."
"""The description of a pruned trial's run, which MLflow shows beside its status."""
WAITING = "waiting"
"""``raymlops.trial_status`` of a trial that continues when its sweep is resumed."""


class KnownRun(NamedTuple):
    """What is remembered of a run that has nothing pending: little, since there are thousands."""

    run_id: str
    started_ms: int
    ending: RunStatus | None
    """None if it is marked RUNNING."""
    trial_status: str
    """Empty if MLflow may lack part of it."""


@dataclass(slots=True, eq=False, kw_only=True)
class TrialRun(PendingRun):
    """The pending part of a child run."""

    number: int
    started_ms: int
    trial_status: str = ""


class TrialRuns:
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
        retry_s: float = MAX_RETRY_S,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self._tracker = tracker
        self._experiment = experiment
        self._parent_run_id = parent_run_id
        self._tags = dict(tags)
        self._name = name
        self._clock = clock
        self._known: dict[int, KnownRun] = {}
        self._parent = PendingRun("the sweep", parent_run_id, recoverable=True, last_step=self._reconcile)
        self._in_bulk = tracker.takes_many
        self._sender = (BulkSender if self._in_bulk else Sender)(
            tracker, on_closed=self._closed, clock=clock, max_pending=max_pending, max_retry_s=retry_s
        )
        self._changed = self._sender.changed

    def adopt(self) -> None:
        """Find the runs that the sweep has already, before any trial starts; of duplicates one is kept.

        Raises:
            TrackingError: MLflow does not answer.
        """
        for number, (run, *duplicates) in _by_trial(self._tracker.children_of(self._parent_run_id)).items():
            self._known[number] = _known(run)
            for other in duplicates:
                self._tracker.delete_run(other.info.run_id)

    def start(self, number: int, params: Mapping[str, Any], *, repeat_of: int | None = None) -> None:
        """Create the run of a trial, or reopen it. A repeat names the trial whose configuration it trains."""
        with self._changed:
            run = self._open(number, params, started_ms=now_ms(), repeat_of=repeat_of)
            run.reopens = (TRIAL_STATUS, REASON) if run.unread else ()
            run.flush_s = self._clock() + FLUSH_EVERY_S
            self._sender.schedule(run)

    def log(self, number: int, *, epoch: int, metrics: Mapping[str, float], at_ms: int | None = None) -> None:
        """Log the metrics of an epoch (``at_ms``: None for now); those that MLflow has already are left out."""
        with self._changed:
            run = self._pending(number)
            if run is not None and run.ending is None:
                ms = now_ms() if at_ms is None else at_ms
                self._sender.put(run, [(name, value, epoch, ms) for name, value in metrics.items()])

    def end(
        self,
        number: int,
        status: TrialStatus,
        *,
        reason: str = "",
        kept: Mapping[str, float] | None = None,
        history: Mapping[int, Mapping[str, float]] | None = None,
    ) -> None:
        """End the run of a trial, with what MLflow lacks of ``history`` (metrics by epoch).

        ``kept`` are the metrics of its best epoch, by which it is ranked: they become the run's latest ones.
        """
        with self._changed:
            run = self._pending(number)
            if run is not None:
                self._end(run, status, reason=reason, kept=kept, history=history or {}, ended_ms=now_ms())

    def suspend(self, number: int) -> None:
        """End the run of a trial that continues when the sweep is resumed."""
        with self._changed:
            run = self._pending(number)
            if run is not None:
                self._sender.end(run, "KILLED", tags={TRIAL_STATUS: WAITING})

    def mirror(self, record: TrialRecord, history: Mapping[int, Mapping[str, float]] | None = None) -> None:
        """Complete the run of a trial that has ended; create it if it is missing, with the id that the study has.

        Nothing is sent if MLflow has all of it, nor for a trial of another sweep, whose run is there.
        """
        now, duration_ms = now_ms(), int(record.duration_s * 1000)
        with self._changed:
            known = self._known.get(record.number)
            complete = (RUN_STATUS[record.status], record.status)  # a run is ended last
            if record.carried_from or (known is not None and (known.ending, known.trial_status) == complete):
                return
            run = self._open(
                record.number,
                record.settings,
                started_ms=now - duration_ms,
                repeat_of=record.repeat_of,
                run_id=record.run_id,
            )
            ended_ms = min(now, run.started_ms + duration_ms) if duration_ms else now
            self._end(
                run,
                record.status,
                reason=record.reason,
                kept=record.metrics,
                history=history or {},
                ended_ms=ended_ms,
            )

    def run_id(self, number: int) -> str | None:
        """Return the MLflow run of a trial; None until it is created where MLflow chooses the id."""
        with self._changed:
            if (run := self._pending(number)) is not None:
                return run.known_id
            known = self._known.get(number)
            return None if known is None else known.run_id

    def set_parent(self, tags: Mapping[str, str]) -> None:
        """Set tags of the sweep's own run with its next batch."""
        self._sender.put(self._parent, tags=tags)

    def news(self) -> list[str]:
        """Return what happened since the last call: an outage, a recovery, data that was lost."""
        return self._sender.notices()

    def abandon(self) -> None:
        """Write nothing more: another driver writes these runs now."""
        self._sender.abandon()

    def close(self, *, wait_s: float = WAIT_S, patient: bool = True) -> None:
        """Flush everything, check all runs once more, and end the thread.

        ``wait_s`` starts again with each request that MLflow accepts; unless ``patient``, it is the total.

        Raises:
            TrackingError: MLflow did not accept everything.
        """
        with self._changed:
            for run in list(self._sender.open.values()):
                if isinstance(run, TrialRun) and run.ending is None:
                    self.suspend(run.number)  # no trial runs once its sweep has ended
            self._sender.schedule(self._parent)
        hint = "Resume the sweep once MLflow answers: its runs are completed from the study."
        self._sender.finish(wait_s=wait_s, patient=patient, hint=hint)

    def _pending(self, number: int) -> TrialRun | None:
        run = self._sender.open.get(f"trial {number}")
        return run if isinstance(run, TrialRun) else None

    def _open(
        self,
        number: int,
        params: Mapping[str, Any],
        *,
        started_ms: int,
        repeat_of: int | None = None,
        run_id: str | None = None,
    ) -> TrialRun:
        """Return the pending part of a trial's run: a new one, or one that is read before anything is sent."""
        run, known = self._pending(number), self._known.get(number)
        if run is None:
            run = TrialRun(
                name=f"trial {number}",
                number=number,
                started_ms=started_ms if known is None else known.started_ms,
                run_id=None if known is None else known.run_id,
                recoverable=True,
                unread=known is not None,
                params=flatten(dict(params)),
            )
            run.create = partial(self._create, number, run.started_ms)
            if repeat_of is not None:
                run.tags[REPEAT_OF] = str(repeat_of)
            if self._in_bulk and known is None:
                run.new_run = self._new(number, run.started_ms, run_id=run_id)
        elif run.ending is not None:
            run.ending, run.unread, run.kept = None, True, {}
            run.tags.pop(TRIAL_STATUS, None)
        return run

    def _create(self, number: int, started_ms: int, maybe_created: bool) -> str:
        trial = {TRIAL: str(number)}
        if maybe_created and (found := self._tracker.children_of(self._parent_run_id, tags=trial)):
            return str(_by_trial(found)[number][0].info.run_id)
        new = self._new(number, started_ms)
        return self._tracker.start_run(new.experiment, name=new.name, tags=new.tags, start_time_ms=new.started_ms)

    def _new(self, number: int, started_ms: int, *, run_id: str | None = None) -> NewRun:
        tags = {**self._tags, "raymlops.kind": "trial", TRIAL: str(number), PARENT: self._parent_run_id}
        return NewRun(run_id or uuid.uuid4().hex, self._experiment, f"{self._name}-{number}", tags, started_ms)

    def _end(
        self,
        run: TrialRun,
        status: TrialStatus,
        *,
        reason: str,
        kept: Mapping[str, float] | None,
        history: Mapping[int, Mapping[str, float]],
        ended_ms: int,
    ) -> None:
        if history and self._sender.has_room():
            run.dropped = 0  # the history has them
        points = [(name, value, epoch, ended_ms) for epoch in sorted(history) for name, value in history[epoch].items()]
        self._sender.put(run, [point for point in points if point[0] != STEP])
        run.trial_status = status
        tags = {TRIAL_STATUS: status} | ({REASON: reason} if reason else {})
        if status == "pruned":
            tags[NOTE] = PRUNED.format(reason or "the scheduler stopped this trial early")
        self._sender.end(run, RUN_STATUS[status], tags=tags, kept=kept, at_ms=ended_ms)

    def _closed(self, run: PendingRun, deleted: bool) -> None:
        if not isinstance(run, TrialRun):
            return
        self._known.pop(run.number, None)
        if not deleted and run.run_id is not None and run.ending is not None:
            status = "" if run.dropped or run.incomplete else run.trial_status
            self._known[run.number] = KnownRun(run.run_id, run.started_ms, run.ending[0], status)

    def _reconcile(self) -> None:
        """Make sure that each trial has one run, and that none is marked RUNNING once the sweep has ended.

        MLflow's client repeats requests by itself (3.17): a run may have been created twice unnoticed.
        """
        for number, runs in _by_trial(self._tracker.children_of(self._parent_run_id)).items():
            ours = self._known.get(number)
            kept = next((run for run in runs if ours is not None and run.info.run_id == ours.run_id), runs[0])
            for run in runs:
                if run is not kept:
                    self._tracker.delete_run(run.info.run_id)
            if kept.info.status != "RUNNING":
                continue
            if ours is not None and ours.ending is not None:
                self._tracker.end_run(kept.info.run_id, ours.ending)
            else:
                self._tracker.log_batch(kept.info.run_id, tags={TRIAL_STATUS: WAITING})
                self._tracker.end_run(kept.info.run_id, "KILLED")


def _known(run: Any) -> KnownRun:
    """Return what is remembered of MLflow's ``Run``."""
    tags = run.data.tags
    status = tags.get(TRIAL_STATUS, "") if tags.get(DROPPED, "0") == "0" else ""
    ending = next((ending for ending in RUN_STATUS.values() if ending == run.info.status), None)
    return KnownRun(run.info.run_id, run.info.start_time, ending, sys.intern(status))


def _by_trial(runs: list[Any]) -> dict[int, list[Any]]:
    """Return MLflow's runs by trial, the one to keep first: the furthest, of equal ones the oldest.

    The oldest is not always the one with data: the last answer to a repeated request is the one that was received.
    """
    trials: dict[int, list[Any]] = {}
    for run in runs:
        number = run.data.tags.get(TRIAL, "")
        if number.isdecimal():
            trials.setdefault(int(number), []).append(run)
    for same in trials.values():
        if len(same) > 1:
            same.sort(key=_merit)
    return trials


def _merit(run: Any) -> tuple[bool, int, int, int, str]:
    ended = run.data.tags.get(TRIAL_STATUS) in RUN_STATUS
    furthest = max(steps_of(run).values(), default=-1)
    return (not ended, -furthest, -len(run.data.params), run.info.start_time, run.info.run_id)
