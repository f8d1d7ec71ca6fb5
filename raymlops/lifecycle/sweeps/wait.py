"""Wait for a sweep that another process runs, with one live display, and return its record.

Owns when a sweep counts as ended, and the error for one that stopped early. Reads alone.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from raymlops.display import OnEvent, shown
from raymlops.errors import ClusterError, NotFoundError, SweepError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.records import SweepRecord
    from raymlops.tracking.client import Tracker
    from raymlops.training.runs.lookup import Recorded
    from raymlops.tuning.reporting.status import SweepStatus
    from raymlops.tuning.reporting.study_reader import OpenStudy, Snapshot

POLL_S = 1.0
_LOOKS = 3
"""Consecutive polls without a driver before it is believed gone: a new one acquires its lease just after its run."""
_ENDED = {"FINISHED", "FAILED", "KILLED"}


def wait_for(
    tracker: Tracker,
    sweep_id: str,
    *,
    timeout_s: float | None = None,
    on_event: OnEvent | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> SweepRecord:
    """Show the progress of a sweep until it has ended, and return its record.

    A service that does not answer is reported in the display and polled again.

    Raises:
        SweepError: it failed, was stopped, or its driver died.
        TimeoutError: it is still running after ``timeout_s``.
        StorageError, NotFoundError: its study cannot be read.
    """
    from raymlops.tuning import budget
    from raymlops.tuning.mlflow.sweep_run import sweep_of
    from raymlops.tuning.reporting.progress import SweepEvent, TrialView

    deadline = None if timeout_s is None else clock() + timeout_s
    elapsed_s, polled_at = 0.0, clock()
    with ExitStack() as stack:
        watched = _Watched(tracker, sweep_of(tracker, sweep_id), stack=stack)
        show = stack.enter_context(shown(on_event))
        while True:
            try:
                status, snapshot = watched.poll()
            except UnreachableError as error:
                show(SweepEvent("message", message=error.message))
            else:
                now, spent_s = clock(), status.spent.wall_s
                elapsed_s = spent_s if watched.ended else max(elapsed_s + now - polled_at, spent_s)
                polled_at = now
                board, total = snapshot.board(), status.num_trials + snapshot.num_repeats
                carried = None if status.best is None else TrialView.of(status.best, status.best.status)
                left = max(0, total - board.ended)
                event = SweepEvent(
                    kind="end" if watched.ended else "epoch",
                    counts=board.counts,
                    rows=board.rows(),
                    total=total,
                    metric=status.metric,
                    best=board.best or carried,
                    elapsed_s=elapsed_s,
                    eta_s=elapsed_s / board.ended * left if board.ended else None,
                    cost=budget.priced(watched.spec.sweep, status.spent),
                )
                show(event)
                if watched.ended:
                    return watched.record(status, snapshot)
            if deadline is not None and clock() >= deadline:
                raise TimeoutError(
                    f"the sweep {sweep_id} is still running after {timeout_s:g} s; call wait() again to keep waiting"
                )
            sleep(POLL_S)


class _Watched:
    """A sweep that is polled; its study stays open, so that ended trials are read once."""

    def __init__(self, tracker: Tracker, recorded: Recorded, *, stack: ExitStack) -> None:
        assert recorded.spec is not None
        self.ended = False
        self._tracker = tracker
        self._recorded = recorded
        self.spec = recorded.spec
        self._stack = stack
        self._study: OpenStudy | None = None
        self._polls_without_driver = 0

    def poll(self) -> tuple[SweepStatus, Snapshot]:
        """Return the status and the trials; sets ``ended``.

        Raises:
            UnreachableError: MLflow, the study or the state do not answer.
        """
        from raymlops.training.runs.lookup import of_mlflow, who_holds
        from raymlops.tuning.reporting.status import summarize
        from raymlops.tuning.reporting.study_reader import Snapshot, open_study

        # The lease before the run: a driver writes its final status before it releases its lease.
        lease = who_holds(self._recorded)
        self._recorded = replace(of_mlflow(self._tracker.run(self._recorded.run_id)), spec=self.spec)
        held = lease[0] == "held"
        has_status = not held and self._recorded.status in _ENDED
        if self._study is None:
            try:
                self._study = self._stack.enter_context(open_study(self._recorded))
            except NotFoundError:  # before the first trial it may not exist yet
                if has_status:
                    raise
        snapshot = Snapshot() if self._study is None else self._study.snapshot()
        status = summarize(self._recorded, tracking_uri=self._tracker.shown_uri, lease=lease, snapshot=snapshot)
        self._polls_without_driver = 0 if held else self._polls_without_driver + 1
        self.ended = has_status or (self._polls_without_driver >= _LOOKS and self._driver_is_gone(status))
        return status, snapshot

    def record(self, status: SweepStatus, snapshot: Snapshot) -> SweepRecord:
        """Return the record of the ended sweep.

        Raises:
            SweepError: it stopped early, or no trial gave a usable value.
        """
        from raymlops.records import SweepRecord
        from raymlops.tuning.study.selection import pareto

        if self._recorded.status != "FINISHED":
            raise _stopped_early(status)
        study = self._study
        assert study is not None
        first = study.objectives[0]
        return SweepRecord(
            sweep_id=status.sweep_id,
            project=self.spec.project.name,
            study=str(study.study.study_name),
            storage=study.storage,
            metric=first.metric,
            mode=first.mode,
            trials=snapshot.ended,
            best=status.best or study.best(),
            best_config=status.best_config,
            duration_s=status.spent.wall_s,
            stopped=status.stopped,
            objectives=tuple(study.objectives) if len(study.objectives) > 1 else (),
            spent=status.spent,
            pareto=pareto(snapshot.ended, objectives=study.objectives),
            forked_from=status.forked_from,
            report=status.report,
            repeats=status.repeats,
        )

    def _driver_is_gone(self, status: SweepStatus) -> bool:
        """Return whether the driver of a sweep that MLflow calls RUNNING has exited."""
        from raymlops.cluster.jobs import Jobs

        released = status.state == "interrupted"
        if not status.submission_id:
            return released
        try:
            return Jobs.of(self.spec).state(status.submission_id).ended
        except NotFoundError:
            return True
        except ClusterError:
            return released  # its jobs ended with the cluster


def _stopped_early(status: SweepStatus) -> SweepError:
    reason = status.detail or "its run does not say why"
    said = {"failed": f"failed: {reason.removeprefix('SweepError: ')}", "killed": f"ended early: {reason}"}
    sweep_id = status.sweep_id
    return SweepError(
        f"the sweep {sweep_id} {said.get(status.state, 'broke off: its driver exited without reporting a status')}",
        hint=f"Resume it with: raymlops sweep --resume {sweep_id}, or rm.sweep(resume={sweep_id!r}).",
    )
