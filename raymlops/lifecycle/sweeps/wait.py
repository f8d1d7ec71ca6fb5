"""Waiting for a sweep that another process runs: one live display, until it has ended, and what came of it.

Owns when a sweep counts as ended, and what is raised where it did not get to its end. Reads alone.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from raymlops.errors import ClusterError, NotFoundError, SweepError, UnreachableError
from raymlops.lifecycle.train import OnEvent, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.records import SweepRecord
    from raymlops.tracking.client import Tracker
    from raymlops.training.runs.lookup import Recorded
    from raymlops.tuning.reporting.progress import SweepEvent
    from raymlops.tuning.reporting.watch import OpenStudy

POLL_S = 1.0
_SURE = 3
"""Looks in a row that find no driver, before it is believed gone: a new one takes its lease just after its run."""
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
    """Show how a sweep goes on until it has ended, and return its record.

    What does not answer for a while is told in the display and asked again.

    Raises:
        SweepError: it failed, was stopped, or its driver died.
        TimeoutError: it still runs after ``timeout_s``.
        StorageError, NotFoundError: its study cannot be read.
    """
    from raymlops.tuning.mlflow.sweep_run import sweep_of
    from raymlops.tuning.reporting.progress import display

    recorded = sweep_of(tracker, sweep_id)
    deadline = None if timeout_s is None else clock() + timeout_s
    with ExitStack() as stack:
        look = _Look(recorded, stack, clock=clock)
        show = stack.enter_context(shown(on_event, display))
        while True:
            try:
                show(look.again(tracker))
            except UnreachableError as error:
                show(look.said(error.message))
            if look.over:
                break
            if deadline is not None and clock() >= deadline:
                raise TimeoutError(f"the sweep {sweep_id} still runs after {timeout_s:g} s; wait() goes on waiting")
            sleep(POLL_S)
        ended = sweep_of(tracker, sweep_id)
        raise_if_broken(ended)
        assert look.study is not None
        return record_of(ended, look.study)


def raise_if_broken(recorded: Recorded) -> None:
    """Raise why a sweep that nobody runs any more did not get to its end.

    Raises:
        SweepError: it did not.
    """
    from raymlops.training.runs.status import why_ended

    if recorded.status == "FINISHED":
        return
    sweep_id = recorded.run_id
    reason = why_ended(recorded)
    said = {
        "FAILED": f"failed: {reason.removeprefix('SweepError: ') or 'its run does not say why'}",
        "KILLED": f"was stopped: {reason or 'its run does not say why'}",
    }
    raise SweepError(
        f"the sweep {sweep_id} {said.get(recorded.status, 'broke off: its driver died without a word')}",
        hint=f"It goes on with: raymlops sweep --resume {sweep_id}, or rm.sweep(resume={sweep_id!r}).",
    )


def record_of(recorded: Recorded, study: OpenStudy) -> SweepRecord:
    """Return the record of a sweep that has ended, from what is written of it.

    Raises:
        SweepError: no trial gave a usable value.
    """
    from raymlops.records import SweepRecord
    from raymlops.tuning.mlflow.sweep_run import BEST_CONFIG, FORKED_FROM, REPORT, STOPPED, before_of
    from raymlops.tuning.study.selection import pareto
    from raymlops.tuning.study.storage import optuna_url, without_credentials

    assert recorded.spec is not None
    standing, spent = study.look(), before_of(recorded)
    first = study.objectives[0]
    tags = recorded.tags
    return SweepRecord(
        sweep_id=recorded.run_id,
        project=recorded.spec.project.name,
        study=str(study.study.study_name),
        storage=without_credentials(optuna_url(recorded.spec)),
        metric=first.metric,
        mode=first.mode,
        trials=standing.ended,
        best=study.choose(standing),
        best_config=tags.get(BEST_CONFIG, ""),
        duration_s=spent.wall_s,
        stopped=tags.get(STOPPED, ""),
        objectives=tuple(study.objectives) if len(study.objectives) > 1 else (),
        spent=spent,
        pareto=pareto(standing.ended, objectives=study.objectives),
        forked_from=tags.get(FORKED_FROM, ""),
        report=tags.get(REPORT, ""),
    )


class _Look:
    """Looks at a sweep again and again; its study stays open, so that what has ended is read once."""

    def __init__(self, recorded: Recorded, stack: ExitStack, *, clock: Callable[[], float]) -> None:
        from raymlops.tuning.reporting.watch import Watch

        assert recorded.spec is not None
        self.over = False
        self.study: OpenStudy | None = None
        self._recorded = recorded
        self._spec = recorded.spec
        self._stack = stack
        self._clock = clock
        self._watch = Watch(recorded.spec)
        self._free = 0
        self._elapsed_s = 0.0
        self._at = clock()

    def again(self, tracker: Tracker) -> SweepEvent:
        """Return how the sweep stands; ``over`` says whether this is the end.

        Raises:
            UnreachableError: MLflow, the study or the state do not answer.
        """
        from raymlops.training.runs.lookup import of_mlflow, who_holds
        from raymlops.tuning import budget
        from raymlops.tuning.mlflow.sweep_run import before_of
        from raymlops.tuning.reporting.watch import Standing

        # The lease before the run: a driver that ends writes its last word first.
        held, _ = who_holds(self._recorded)
        self._recorded = replace(of_mlflow(tracker.run(self._recorded.run_id)), spec=self._spec)
        self._free = 0 if held == "held" else self._free + 1
        ended = held != "held" and self._recorded.status in _ENDED
        gone = self._free >= _SURE and _is_gone(self._recorded, held=held)
        standing = Standing()
        if self._open(needed=ended) and self.study is not None:
            standing = self.study.look()
        self.over = ended or gone
        spent = before_of(self._recorded)
        now = self._clock()
        self._elapsed_s = spent.wall_s if self.over else max(self._elapsed_s + now - self._at, spent.wall_s)
        self._at = now
        price = self._spec.sweep.price
        return self._watch.event(
            standing,
            kind="end" if self.over else "epoch",
            elapsed_s=self._elapsed_s,
            cost=budget.words(spent) if price.cpu_hour or price.gpu_hour else "",
        )

    def said(self, message: str) -> SweepEvent:
        """Return an event that tells something."""
        from raymlops.tuning.reporting.progress import said
        from raymlops.tuning.reporting.watch import total_of

        return said(message, total=total_of(self._spec))

    def _open(self, *, needed: bool) -> bool:
        """Open the study; before the first trial it may not be there yet."""
        from raymlops.tuning.reporting.watch import reading

        if self.study is None:
            try:
                self.study = self._stack.enter_context(reading(self._recorded))
            except NotFoundError:
                if needed:
                    raise
        return self.study is not None


def _is_gone(recorded: Recorded, *, held: str) -> bool:
    """Return whether the driver of a sweep that MLflow calls RUNNING lives no more."""
    from raymlops.cluster.jobs import Jobs
    from raymlops.tuning.mlflow.sweep_run import SUBMISSION

    submission_id = recorded.tags.get(SUBMISSION, "")
    if not submission_id or recorded.spec is None:
        return held == "free"
    try:
        return Jobs.of(recorded.spec).state(submission_id).ended
    except NotFoundError:
        return True
    except ClusterError:
        return held == "free"  # with the cluster its jobs have ended
