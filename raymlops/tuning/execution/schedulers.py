"""The scheduler that stops poor trials: one of Ray Tune's, with trials known by their numbers.

Tune gives a resumed trial a new id. By number, each trial is in a rung once, and what a sweep reported before it was
resumed can be replayed. Nothing is ever paused: Hyperband is the asynchronous one, with a bracket for each number of
halvings.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

from raymlops.tuning.study.records import reports_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.config.sweep import SweepSection

RESOURCE, VALUE = "resource", "value"
"""Keys of a trial's result: the scheduler's clock, and the value it compares."""


@dataclass(frozen=True)
class _Known:
    """The part of a trial that a scheduler reads, as a key too."""

    trial_id: str


@dataclass(frozen=True)
class Judged:
    """A report that the scheduler has judged."""

    number: int
    """Of the trial."""
    resource: float
    value: float
    order: int | None
    """Its place among all reports; None where that was not kept."""


class _Median(MedianStoppingRule):  # type: ignore[misc]
    """Judges a trial again that went on although it was to be stopped; Tune's own asserts that there is none."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> Any:
        self._stopped_trials.discard(trial)
        return super().on_trial_result(tune_controller, trial, result)


class NumberedScheduler(FIFOScheduler):  # type: ignore[misc]
    """One of Tune's schedulers, with trials known by their numbers."""

    def __init__(self, scheduler: Any, *, seed: int, resource: str = "epoch") -> None:
        super().__init__()
        self._scheduler = scheduler
        self._seed = seed
        self._resource = resource
        self._stopped: set[int] = set()
        self._heard: dict[int, float] = {}
        """The highest resource of each trial: what it reports again from a checkpoint is not judged again."""
        self.before_start: Callable[[Any], None] = lambda _tune_controller: None
        """Called before Tune starts trials."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial, new or resumed."""
        self._add(tune_controller, trial.config["number"])

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return the first pending trial."""
        self.before_start(tune_controller)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> Any:
        """Return Tune's decision on a trial, after those on the epochs that its checkpoint restored."""
        number = trial.config["number"]
        for entry in json.loads(result.get("restored", "[]")):
            clock = entry["epoch"] if self._resource == "epoch" else entry["metrics"].get(self._resource)
            self._decide(tune_controller, number, {RESOURCE: clock, VALUE: entry["value"]})
        return self._decide(tune_controller, number, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
        """Record that a trial ended by itself."""
        if _comparable(result):
            self._scheduler.on_trial_complete(tune_controller, _known(trial.config["number"]), result)

    def replay(self, reports: Sequence[Judged], *, trials: Iterable[int]) -> set[int]:
        """Replay what ``trials`` reported before the sweep was resumed; return those that were to be stopped.

        The reports are in the order in which they were judged, so that each gets the decision that it got. In a sweep
        of raymlops 0.1, which kept no order, a trial that would be stopped may have gone on: it still does.
        """
        for number in trials:
            self._add(None, number)
        for report in reports:
            decision = self._decide(None, report.number, {RESOURCE: report.resource, VALUE: report.value})
            if decision == FIFOScheduler.STOP and report.order is None:
                self._stopped.discard(report.number)
        return set(self._stopped)

    def _decide(self, controller: Any, number: int, result: Any) -> Any:
        # A stopped trial may report once more: its driver died before Tune stopped it.
        if number in self._stopped:
            return FIFOScheduler.STOP
        if not _comparable(result) or result[RESOURCE] <= self._heard.get(number, -math.inf):
            return FIFOScheduler.CONTINUE
        self._heard[number] = result[RESOURCE]
        decision = self._scheduler.on_trial_result(controller, _known(number), result)
        if decision == FIFOScheduler.STOP:
            self._stopped.add(number)
        return decision

    def _add(self, controller: Any, number: int) -> None:
        # Tune draws a trial's bracket from numpy's global generator.
        before = np.random.get_state()  # noqa: NPY002
        np.random.seed((self._seed * 1_000_003 + number) % 2**32)  # noqa: NPY002
        try:
            self._scheduler.on_trial_add(controller, _known(number))
        finally:
            np.random.set_state(before)  # noqa: NPY002


def scheduler_of(spec: ProjectSpec) -> NumberedScheduler:
    """Return the scheduler named by ``sweep.scheduler``."""
    section, kind = spec.sweep, spec.sweep.scheduler
    common = {"time_attr": RESOURCE, "metric": VALUE, "mode": spec.objectives[0].mode}
    scheduler: Any
    if kind == "none":
        scheduler = FIFOScheduler()
    elif kind == "median":
        # With an infinite time slice it never pauses a trial while there are too few others to compare with.
        scheduler = _Median(grace_period=section.grace_period, min_time_slice=math.inf, **common)
    else:
        longest = spec.trial_length
        scheduler = ASHAScheduler(
            max_t=longest,
            grace_period=min(section.grace_period, longest),
            reduction_factor=section.reduction_factor,
            brackets=_halvings(section, longest) if kind == "hyperband" else 1,
            # Otherwise Tune cuts at every rung that a trial skipped, one a report; a whole trial ends by itself.
            stop_last_trials=False,
            **common,
        )
    return NumberedScheduler(scheduler, seed=section.seed, resource=section.resource)


def unscheduled() -> NumberedScheduler:
    """Return a scheduler that stops no trial."""
    return NumberedScheduler(FIFOScheduler(), seed=0)


def judged(spec: ProjectSpec, trials: Iterable[Any]) -> list[Judged]:
    """Return the reports that the scheduler judged, in that order, from Optuna's trials.

    Reports without an order are older: raymlops 0.1 and Optuna itself keep none. The last one of a complete trial among
    them never reached the scheduler.
    """
    name, found = spec.sweep.resource, []
    for trial in trials:
        known = reports_of(trial)
        ordered = any(report.order is not None for report in known.values())
        old = sorted(trial.intermediate_values)
        epochs = known if ordered else old[:-1] if trial.state.name == "COMPLETE" else old
        for epoch in epochs:
            report = known.get(epoch)
            value = trial.intermediate_values.get(epoch, math.nan)
            metrics, order = ({}, None) if report is None else (report.metrics, report.order)
            resource = epoch if name == "epoch" else metrics.get(name)
            if resource is not None and math.isfinite(value) and (order is not None or not ordered):
                found.append(Judged(trial.number, float(resource), value, order))
    return sorted(found, key=lambda one: (-1, one.number, one.resource) if one.order is None else (one.order, 0, 0.0))


def _halvings(section: SweepSection, longest: float) -> int:
    """Return how many brackets there are: floor(log(most / least) / log(reduction)) + 1 (Li et al., 2018)."""
    ratio = longest / min(section.grace_period, longest)
    return math.floor(math.log(ratio) / math.log(section.reduction_factor) + 1e-9) + 1


def _known(number: int) -> _Known:
    return _Known(str(number))


def _comparable(result: Mapping[str, Any]) -> bool:
    """Return whether a result has a clock and a finite value; that of a failed trial has neither."""
    return result.get(RESOURCE) is not None and math.isfinite(result.get(VALUE, math.nan))
