"""What happens in a sweep, event by event: a trial is wanted, an epoch is reported, a trial ends, the sweep is halted.

Owns the order in which the study, the child runs and the progress hear of it, and that every trial that was opened
ends. Knows nothing of Ray Tune, whose hooks (``hooks``) call it, so that it can be tested by calling it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raymlops.errors import UsageError
from raymlops.tuning.progress import SweepEvent, TrialView
from raymlops.tuning.reasons import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.project import Project
    from raymlops.records import TrialStatus
    from raymlops.tuning.children import Children
    from raymlops.tuning.progress import EventKind
    from raymlops.tuning.trials import Trials

Halt = Literal["interrupted", "timed out", "broken"]
_HALTED: dict[Halt | None, str] = {
    "interrupted": "was interrupted",
    "timed out": "reached its timeout_s",
    "broken": "broke off",
    None: "ended",
}


class Conductor:
    """The one place that trials, runs and progress are told of what happened."""

    def __init__(
        self,
        project: Project,
        *,
        trials: Trials,
        children: Children,
        metric: str,
        mode: str,
        max_concurrent: int,
        shared: Mapping[str, Any] | None = None,
        on_event: Callable[[SweepEvent], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.halt: Halt | None = None
        self.error: BaseException | None = None
        self._project = project
        self._trials = trials
        self._children = children
        self._metric = metric
        self._sign = 1.0 if mode == "min" else -1.0
        self._max_concurrent = max_concurrent
        self._on_event = on_event
        self._clock = clock
        self._started = clock()
        # A recipe need not be installed: what this process can import, a trial's process on this machine can.
        self._shared = json.dumps(shared)  # what the driver found out of the data
        self._sys_path = json.dumps([str(Path(entry).absolute()) for entry in sys.path])
        self._views: dict[int, TrialView] = {}
        self._best: TrialView | None = None
        self._closed = False

    @property
    def wanted(self) -> int:
        """Return how many more trials are to be drawn."""
        return 0 if self.halt else self._project.spec.sweep.num_trials - self._trials.asked

    @property
    def halting(self) -> bool:
        """Return whether every trial is to stop now."""
        timeout_s = self._project.spec.sweep.timeout_s
        if self.halt is None and timeout_s is not None and self._clock() - self._started >= timeout_s:
            self.halt = "timed out"
        return self.halt is not None

    def next_trial(self) -> dict[str, Any] | None:
        """Draw a trial and return what its process needs, or None while as many run as the cluster holds."""
        while self.wanted > 0 and len(self._trials.open) < self._max_concurrent:
            trial = self._trials.ask()
            self._children.start(trial.number, trial.params)
            self._views[trial.number] = TrialView(trial.number, dict(trial.params), "running")
            try:
                project = self._project.with_params(trial.params)
            except UsageError as error:
                # Each value is in its range, but the recipe refuses the combination.
                self.end(trial.number, "failed", reason=describe(error))
                continue
            self._emit("started", trial.number)
            # As text: Tune looks for search spaces of its own in what it is given.
            return {
                "number": trial.number,
                "project": json.dumps(project.to_dict()),
                "shared": self._shared,
                "sys_path": self._sys_path,
                "cwd": str(Path.cwd()),
            }
        return None

    def epoch(
        self, number: int, *, epoch: int, value: float, metrics: Mapping[str, float], best_metrics: Mapping[str, float]
    ) -> None:
        """Record an epoch of a trial. ``value``, the sweep's metric, and ``best_metrics`` are of its best epoch yet."""
        if self._closed:
            return  # its process had not heard yet
        self._trials.report(number, epoch=epoch, value=value, metrics=best_metrics)
        self._children.log(number, epoch=epoch, metrics=metrics)
        self._see(number, "running", epoch=epoch, value=value)
        self._emit("epoch", number)

    def end(self, number: int, status: TrialStatus, *, reason: str = "") -> None:
        """Record the end of a trial, with the status it deserves."""
        if self._closed:
            return
        record = self._trials.tell(number, status, reason=reason, run_id=self._children.run_id(number))
        self._children.end(number, record.status, reason=record.reason)
        self._see(number, record.status, epoch=record.epochs, value=record.value)
        self._emit("ended", number)

    def close(self) -> None:
        """End every trial that is still open: pruned where it has a value, failed where it has none."""
        if self._closed:
            return
        for number in self._trials.open:
            self.end(number, "pruned", reason=f"the sweep {_HALTED[self.halt]}")
        if self.halt == "interrupted":
            self._children.kill_parent()
        self._closed = True
        self._emit("end", None)

    def failed(self, error: BaseException) -> None:
        """Keep an error that a hook ran into, and stop the sweep: Tune would turn it into text."""
        self.error = self.error or error
        self.halt = self.halt or "broken"

    def _see(self, number: int, state: str, *, epoch: int, value: float | None) -> None:
        view = TrialView(number, self._views[number].params, state, epoch, value)
        self._views[number] = view
        if state == "complete" and value is not None and math.isfinite(value):
            best = self._best
            if best is None or best.value is None or self._sign * value < self._sign * best.value:
                self._best = view

    def _emit(self, kind: EventKind, number: int | None) -> None:
        if self._on_event is None:
            return
        elapsed_s = self._clock() - self._started
        ended = sum(view.state != "running" for view in self._views.values())
        total = self._project.spec.sweep.num_trials
        event = SweepEvent(
            kind=kind,
            number=number,
            trials=tuple(self._views.values()),
            total=total,
            metric=self._metric,
            best=self._best,
            elapsed_s=elapsed_s,
            eta_s=elapsed_s / ended * (total - ended) if ended else None,
        )
        try:
            self._on_event(event)
        except Exception:
            self._on_event = None  # once is enough: the trials that are open are still to be ended
            raise
