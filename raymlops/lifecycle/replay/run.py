"""The weeks of a replay: requests and labels in their order, and pauses for the controller, whose work takes real time.

Owns when time goes on. It stands still while something starts, trains or is evaluated, so that nothing is late that is
quick in the world that is replayed. Beside the endpoint answer its first version, which is never retrained, and one
that is retrained blindly every few weeks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.bundle.load import load
from raymlops.data.prepare import table_columns
from raymlops.errors import NotFoundError
from raymlops.lifecycle.prediction_log import stored_log
from raymlops.lifecycle.registration.register import register
from raymlops.lifecycle.replay.events import EventLog, is_busy, judged_until
from raymlops.lifecycle.replay.feed import Feed
from raymlops.lifecycle.replay.flights_asked import BEGIN, WEEK, asked
from raymlops.lifecycle.replay.weeks import Tally
from raymlops.lifecycle.sources import project_of
from raymlops.lifecycle.train import train
from raymlops.predictions.read import Reading
from raymlops.splits import Window

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from raymlops.bundle.load import LoadedModel
    from raymlops.lifecycle.replay.flights_asked import Request
    from raymlops.lifecycle.replay.weeks import WeekRecord
    from raymlops.project import Project
    from raymlops.serving.client.client import Client
    from raymlops.state.store import State

FAULT_WEEK = 6
"""From 1: its hours are those of another zone."""
LABEL_LAG = timedelta(days=7)
BLIND_WEEKS = 4
TRAIN_DAYS = 90
JUDGED_AFTER = timedelta(hours=1)
"""After midnight of New York, which is 4 or 5 o'clock in UTC: the hours of the UTC day can be counted by then."""
SETTLE_S = 150.0
"""Real seconds for which time stands still at most."""
JUDGE_S = 8.0
STORE_S = 8.0
_POLL_S = 0.2

POLICY = (
    "recipe.import=raymlops.recipes.late_flights:LateFlights",
    "train.num_workers=0",
    "sweep.space=null",
    "gate.thresholds=null",
    "gate.metric=test/loss",
    "gate.mode=min",
    "gate.margin=0.005",
    "gate.blocks=28",
    "monitor.skill.window_h=168",
    "monitor.skill.labels_within_h=168",
    "serve.log.flush_s=0.2",
    "serve.log.retention_days=365",
    "serve.keep_warm_s=1209600",
    "serve.ready_timeout_s=604800",
    "serve.max_replicas=1",
    "serve.rollout.steps=[50, 100]",
    "serve.rollout.bake_s=172800",
    "serve.rollout.max_wait_s=1209600",
    "serve.rollout.error_margin=0.1",
    "serve.rollout.slow_s=1.0",
    "serve.rollout.quality_margin=null",
    "retrain.autonomy=act",
    "retrain.triggers.skill=true",
    "retrain.triggers.every_days=28",
    "retrain.bake_h=336",
)
"""What differs from ``configs/flights.yaml``; whatever differs from the defaults is printed."""


Wait = Callable[[Callable[[], bool], float], None]
"""Returns once the function does, or after so many real seconds."""
Logged = Callable[["datetime", "datetime"], int]
"""Returns how many rows the prediction log has from one time until before another."""


@dataclass(frozen=True)
class Trained:
    """A registered version of a window of flights."""

    project: Project
    version: str
    model: LoadedModel
    source: Path
    overrides: Sequence[str]


def trained(source: Path, overrides: Sequence[str], *, until: datetime, name: str | None = None) -> Trained:
    """Train on the days before a time, in this process, and register the run."""
    window = f"{{start: '{until - timedelta(days=TRAIN_DAYS):%Y-%m-%dT%H:%M}', stop: '{until:%Y-%m-%dT%H:%M}'}}"
    named = [f"project.name={name}"] if name else []
    project = project_of(source, overrides=[*overrides, f"train.window={window}", *named])
    version = register(project, train(project, on_event=_silent).run_id, on_line=_silent)
    return Trained(project, str(version.version), load(version.bundle.uri, version.bundle.digest), source, overrides)


class Replay:
    """All weeks of one model."""

    def __init__(
        self,
        first: Trained,
        state: State,
        client: Client,
        *,
        weeks: int,
        clock_file: Path,
        wait: Wait | None = None,
        logged: Logged | None = None,
    ) -> None:
        """Take the first version, which is live, the state that it is live by, and a client of its endpoint."""
        self._first = first
        self._state = state
        self._weeks = weeks
        self._name = first.project.spec.project.name
        self._events = EventLog(state, self._name)
        self._requests: deque[Request] | None = None
        self._blind = first.model
        self.feed = Feed(client, self._name, clock_file=clock_file, label_lag=LABEL_LAG)
        self.requests = 0
        self._wait = wait or _wait
        self._logged = logged or partial(_logged, state, self._name)

    def week(self, number: int) -> WeekRecord:
        """Send the requests of a week, counted from 0, and all labels that are due; return what it came to."""
        tally, end, requests = Tally(), BEGIN + (number + 1) * WEEK, self._left()
        for days in range(6, -1, -1):
            closes = end - timedelta(days=days) + JUDGED_AFTER
            answered = []
            while requests and requests[0].at < closes:
                request = requests.popleft()
                answered.append((request, *self.feed.send(request, score=_late)))
            self._log(answered, closes)
            self.feed.until(closes)
            self._add(answered, tally)  # while the controller judges the day
            self._judged(closes)
        if (number + 1) % BLIND_WEEKS == 0:
            of = self._first
            self._blind = trained(of.source, of.overrides, until=end, name=f"{self._name}-blind").model
        return tally.closed(number + 1, until=f"{end:%Y-%m-%d}", events=self._events.new())

    def _log(self, answered: Sequence[tuple[Request, str, list[float]]], closes: datetime) -> None:
        """Wait until the log has what was answered on a day: what comes after its hours are counted waits for a day."""
        if answered:
            since, rows = answered[0][0].at, sum(len(request.rows) for request, _, _ in answered)
            self._wait(lambda: self._logged(since, closes) >= rows, STORE_S)

    def _add(self, answered: Sequence[tuple[Request, str, list[float]]], tally: Tally) -> None:
        """Add what was answered on a day, and what the first version and the blind one say of the same rows."""
        rows = [row for request, _, _ in answered for row in request.rows]
        if not rows:
            return
        models = {"frozen": self._first.model, "blind": self._blind}
        beside = {name: iter([_late(row) for row in model.predict_rows(rows)]) for name, model in models.items()}
        for request, version, live in answered:
            theirs = {name: list(islice(answers, len(request.rows))) for name, answers in beside.items()}
            tally.add(request.labels, version, {"live": live, **theirs})
        self.requests += len(answered)

    def _left(self) -> deque[Request]:
        """Return the requests that were not sent yet."""
        if self._requests is None:
            recipe: Any = self._first.model.recipe
            # Rows whose labels came until then are as many weeks as are replayed, and the hour after them.
            until = BEGIN + self._weeks * WEEK + JUDGED_AFTER
            splits = recipe.datasets(Window(BEGIN, until + LABEL_LAG))
            tables = [table_columns(each) for each in (splits.train, splits.validation, splits.test)]
            rows = {name: np.concatenate([each[name] for each in tables]) for name in tables[0]}
            times, label = np.asarray(recipe.row_times(rows)), str(recipe.label)
            found = asked(rows, times, recipe.signature(), label=label, fault_week=FAULT_WEEK - 1)
            self._requests = deque(found)
        return self._requests

    def _judged(self, moment: datetime) -> None:
        """Wait until the day before a moment is judged, and for what follows from that and takes real time."""
        day = moment.replace(hour=0, minute=0)  # windows are days of UTC
        self._wait(lambda: judged_until(self._state, self._name) >= day, JUDGE_S)
        self._settle()

    def _settle(self) -> None:
        self._wait(lambda: not is_busy(self._state, self._name), SETTLE_S)


def _wait(done: Callable[[], bool], limit_s: float) -> None:
    ends = time.monotonic() + limit_s
    while not done() and time.monotonic() < ends:
        time.sleep(_POLL_S)


def _logged(state: State, name: str, since: datetime, until: datetime) -> int:
    log = stored_log(state, name)
    if log is None:
        return 0
    window: dict[str, Any] = {"since": since, "until": until, "columns": ["request_id"], "labels": False}
    try:
        return sum(batch.num_rows for uri in log.distinct for batch in Reading(uri, name, **window))
    except NotFoundError:  # nothing is written yet
        return 0


def _late(output: dict[str, Any]) -> float:
    return float(output["probability"])


def _silent(_progress: Any) -> None:
    """Show no progress: a step has one line."""
