"""Which scheduler stops poor trials, and how it comes to know a trial that it has seen before.

Owns what Ray Tune's schedulers are told. A scheduler knows trials by Tune's ids, which a trial that goes on gets anew;
here it knows them by number, so that each stands in a rung once, and what a sweep reported before it was resumed can be
told again. Nothing is ever paused: Hyperband is the asynchronous one, with a bracket for each number of halvings.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

from raymlops.tuning.objectives import max_resource, mode_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from raymlops.config.schema import ProjectSpec

RESOURCE, VALUE = "resource", "value"
"""Keys of a trial's result: the scheduler's clock, and what it judges."""


@dataclass(frozen=True)
class _Known:
    """A trial as a scheduler sees it."""

    trial_id: str


class Judge(FIFOScheduler):  # type: ignore[misc]
    """One of Tune's schedulers, which knows each trial by its number."""

    def __init__(self, scheduler: Any, *, seed: int, resource: str = "epoch") -> None:
        super().__init__()
        self._scheduler = scheduler
        self._seed = seed
        self._resource = resource
        self._stopped: set[int] = set()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take in a trial, new or one that goes on."""
        self._add(tune_controller, trial.config["number"])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> Any:
        """Return whether the trial goes on; epochs that its checkpoint brought back are judged first."""
        number = trial.config["number"]
        for entry in json.loads(result.get("restored", "[]")):
            clock = entry["epoch"] if self._resource == "epoch" else entry["metrics"].get(self._resource)
            self._judge(tune_controller, number, {RESOURCE: clock, VALUE: entry["value"]})
        return self._judge(tune_controller, number, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
        """Take in that a trial ended by itself."""
        if _judged(result):
            self._scheduler.on_trial_complete(tune_controller, _known(trial.config["number"]), result)

    def replay(self, number: int, reports: Iterable[tuple[float, float]], *, complete: bool) -> bool:
        """Take in again what a trial reported before the sweep was resumed; return whether it was stopped.

        ``reports`` are pairs of resource and value. The last one of a trial that ended by itself was never judged.
        """
        self._add(None, number)
        told = list(reports)
        for resource, value in told[:-1] if complete else told:
            self._judge(None, number, {RESOURCE: resource, VALUE: value})
        return number in self._stopped

    def _judge(self, controller: Any, number: int, result: Any) -> Any:
        # One that was stopped may report once more: its driver died before anybody was told.
        if number in self._stopped:
            return FIFOScheduler.STOP
        if not _judged(result):
            return FIFOScheduler.CONTINUE
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


def judge(spec: ProjectSpec) -> Judge:
    """Return the scheduler that the configuration asks for."""
    section, kind = spec.sweep, spec.sweep.scheduler
    common = {"time_attr": RESOURCE, "metric": VALUE, "mode": mode_of(spec)}
    scheduler: Any
    if kind == "none":
        scheduler = FIFOScheduler()
    elif kind == "median":
        # With an endless time slice it never pauses a trial for want of others to compare with.
        scheduler = MedianStoppingRule(grace_period=section.grace_period, min_time_slice=math.inf, **common)
    else:
        longest = max_resource(spec)
        scheduler = ASHAScheduler(
            max_t=longest,
            grace_period=min(section.grace_period, longest),
            reduction_factor=section.reduction_factor,
            brackets=_halvings(spec) if kind == "hyperband" else 1,
            # Else Tune cuts at every rung that a trial leapt over, one a report; a whole trial ends by itself.
            stop_last_trials=False,
            **common,
        )
    return Judge(scheduler, seed=section.seed, resource=section.resource)


def reports(spec: ProjectSpec, values: Mapping[int, float], history: Mapping[int, Mapping[str, float]]) -> Any:
    """Return what a trial reported as pairs of resource and value, as its intermediate values and its history say."""
    name = spec.sweep.resource
    for epoch, value in sorted(values.items()):
        resource = epoch if name == "epoch" else history.get(epoch, {}).get(name)
        if resource is not None and math.isfinite(value):
            yield float(resource), value


def _halvings(spec: ProjectSpec) -> int:
    """Return how many brackets there are: floor(log(most / least) / log(reduction)) + 1 (Li et al., 2018)."""
    section, longest = spec.sweep, max_resource(spec)
    ratio = longest / min(section.grace_period, longest)
    return math.floor(math.log(ratio) / math.log(section.reduction_factor) + 1e-9) + 1


def _known(number: int) -> _Known:
    return _Known(str(number))


def _judged(result: Mapping[str, Any]) -> bool:
    """Return whether a result is one that can be compared: a trial that failed has neither clock nor value."""
    return result.get(RESOURCE) is not None and math.isfinite(result.get(VALUE, math.nan))
