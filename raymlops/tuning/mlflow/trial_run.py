"""One child run of a sweep: what MLflow has of it, and what it is still to be told.

Owns what makes a run complete, which of two runs of one trial is kept, and that a point is told once. No clock,
no thread, no request. Knows nothing of when something is sent (``childsender``).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from raymlops.tracking.client import metric_key, steps_of
from raymlops.tracking.outbox import DROPPED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.records import TrialStatus
    from raymlops.tracking.client import MetricPoint

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
RUN_STATUS: dict[TrialStatus, RunStatus] = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
TRIAL = "raymlops.trial"
TRIAL_STATUS = "raymlops.trial_status"
WAITING = "waiting"
"""``raymlops.trial_status`` of a trial that goes on when its sweep is resumed."""


class Seen(NamedTuple):
    """What is remembered of a run that nothing is waiting for: little, there are thousands."""

    run_id: str
    started_ms: int
    ending: RunStatus | None
    """None where it is said to run."""
    trial_status: str
    """Empty where MLflow may lack some of it."""

    def fits(self, status: TrialStatus) -> bool:
        """Return whether MLflow has all of a trial that ended so: its run is closed last, and by this tag."""
        return (self.ending, self.trial_status) == (RUN_STATUS[status], status)


class Batch(NamedTuple):
    """What goes into one request."""

    params: dict[str, str]
    points: list[MetricPoint]
    tags: dict[str, str]


@dataclass(slots=True, eq=False)
class ChildRun:
    """A run that MLflow does not have all of yet. A parent run is one too, with tags alone."""

    number: int
    started_ms: int
    run_id: str | None = None
    params: dict[str, str] = field(default_factory=dict)
    points: list[MetricPoint] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    ending: tuple[RunStatus, int] | None = None
    """How it ended, and when in milliseconds since the epoch."""
    trial_status: str = ""
    """Of the trial that has ended and all of whose points are here."""
    unread: bool = False
    """MLflow may have more of it than is known here."""
    reopens: bool = False
    """It was ended, and goes on."""
    asked: bool = False
    """Its making was asked for and not answered: it may have been made."""
    dropped: int = 0
    """Points that are lost unless its end brings them again."""
    last_steps: dict[str, int] = field(default_factory=dict)
    flush_s: float = -math.inf
    """When it is to be told of what waits, on the clock of whoever sends."""
    due_s: float = math.inf
    """When it is looked at next."""
    failures: int = 0
    """Requests in a row that failed."""
    refusal: Exception | None = None
    """MLflow answered the last one, and said no."""

    @property
    def waits(self) -> bool:
        """Return whether there is something to tell, its end aside."""
        return bool(self.points or self.tags or self.params)

    def new(self, metrics: Mapping[str, float], *, step: int, ms: int) -> list[MetricPoint]:
        """Return those metrics of a step that it was not told of."""
        # A sweep of thousands of trials has few names of metrics: they are kept once.
        keyed = {sys.intern(metric_key(name)): float(value) for name, value in metrics.items()}
        return [(key, value, step, ms) for key, value in keyed.items() if step > self.last_steps.get(key, -1)]

    def add(self, points: list[MetricPoint]) -> None:
        """Take in points that are ``new``."""
        self.points += points
        self.last_steps |= {key: step for key, _, step, _ in points}

    def take(self) -> Batch:
        """Return what waits, which is then on its way."""
        batch = Batch(self.params, self.points, self.tags)
        self.params, self.points, self.tags = {}, [], {}
        return batch

    def put_back(self, batch: Batch) -> None:
        """Take back what may not have arrived. To send it again does no harm: the timestamps are the same."""
        self.params = {**batch.params, **self.params}
        self.points = [*batch.points, *self.points]
        self.tags = {**batch.tags, **self.tags}

    def learn(self, run: Any) -> None:
        """Leave out what MLflow's ``Run`` has already."""
        steps = steps_of(run)
        self.params = {key: value for key, value in self.params.items() if metric_key(key) not in run.data.params}
        self.points = [point for point in self.points if point[2] > steps.get(point[0], -1)]
        for key, step in steps.items():
            self.last_steps[key] = max(step, self.last_steps.get(key, -1))
        if DROPPED in run.data.tags and not self.dropped:
            self.tags = {DROPPED: "0", **self.tags}

    def seen(self) -> Seen | None:
        """Return what is to be remembered once it is closed."""
        if self.run_id is None or self.ending is None:
            return None
        return Seen(self.run_id, self.started_ms, self.ending[0], self.trial_status)


def seen(run: Any) -> Seen:
    """Return what is to be remembered of MLflow's ``Run``."""
    tags = run.data.tags
    told = tags.get(TRIAL_STATUS, "") if tags.get(DROPPED, "0") == "0" else ""
    ending = next((status for status in RUN_STATUS.values() if status == run.info.status), None)
    return Seen(run.info.run_id, run.info.start_time, ending, sys.intern(told))


def by_trial(runs: list[Any]) -> dict[int, list[Any]]:
    """Return MLflow's runs by the number of their trial, the one to keep first: the furthest, of equal ones the oldest.

    The oldest need not be the one that was written to: of a request that was repeated the last answer is known.
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
