"""A run that MLflow does not have all of yet: what is still to be sent, and that no point is sent twice.

No clock, no thread, no request: when something is sent is the sender's decision.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from raymlops.tracking.artifacts import PendingArtifacts
from raymlops.tracking.client import METRIC_BATCH, Latest, latest_of
from raymlops.tracking.entities import metric_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from raymlops.records import MetricPoint
    from raymlops.tracking.run_tables import NewRun

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
DROPPED = "raymlops.dropped_points"
"""Tag: the number of points that were lost because MLflow was unavailable for too long."""


class Batch(NamedTuple):
    """What is sent of a run at once."""

    points: list[MetricPoint]
    tags: dict[str, str]
    params: dict[str, str]
    kept: dict[str, float]
    ending: tuple[RunStatus, int] | None
    """None where something else is to be sent before."""


@dataclass(slots=True, eq=False)
class PendingRun:
    """The pending parameters, points, tags and end of one run. ``name`` is its name in messages."""

    name: str
    run_id: str | None = None
    """None until it is created."""
    create: Callable[[bool], str] | None = None
    """Creates the run and returns its id; the argument says whether an earlier request may have created it already."""
    new_run: NewRun | None = None
    """What creates the run where many are written at once."""
    alone: bool = False
    """It is not written with others: MLflow rejected something that was."""
    recoverable: bool = False
    """Whether its points can be logged again later: then the newest points are dropped when too many are pending, and
    rejected ones are given up at once."""
    last_step: Callable[[], None] | None = None
    """Called once every other run is complete, before ``Sender.finish`` returns."""
    params: dict[str, str] = field(default_factory=dict)
    points: list[MetricPoint] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: PendingArtifacts = field(default_factory=PendingArtifacts)
    """Sent one at a time, beside the batches."""
    ending: tuple[RunStatus, int] | None = None
    """The final status, and its time in milliseconds since the epoch."""
    latest: dict[str, Latest] = field(default_factory=dict)
    """The last point of each metric that was logged."""
    kept: dict[str, float] = field(default_factory=dict)
    """Of a run that ends: the metrics of the model that is kept, which are to be the latest ones."""
    in_flight: int = 0
    """The number of points, from the first one on, that are being sent."""
    dropped: int = 0
    incomplete: bool = False
    """MLflow rejected part of it."""
    unread: bool = False
    """MLflow may have more of the run than is known here: it is read before anything is sent."""
    reopens: tuple[str, ...] = ()
    """The run has ended and resumes: it is set to RUNNING, and these tags are removed."""
    flush_s: float = -math.inf
    """When the next batch is sent, unless it is full earlier."""
    due_s: float = math.inf
    """When the sender looks at it next."""
    not_before_s: float = -math.inf
    failures: int = 0
    """Consecutive failed requests."""
    unchecked: bool = False
    """The last request failed, and the server has not been probed since."""
    rejections: list[Exception] = field(default_factory=list)
    """Consecutive requests that MLflow answered with an error."""

    @property
    def known_id(self) -> str | None:
        """Return the id that the run has or will have; None where MLflow chooses it and has not yet."""
        return self.new_run.run_id if self.new_run is not None else self.run_id

    @property
    def has_batch(self) -> bool:
        """Return whether anything but the end is pending."""
        return bool(self.points or self.tags or self.params or self.kept)

    def new(self, points: Iterable[MetricPoint]) -> list[MetricPoint]:
        """Return the points that are above the last step of their metric."""
        found: list[MetricPoint] = []
        reached: dict[str, int] = {}
        for name, value, step, ms in points:
            # A sweep has thousands of runs with the same few metrics: each name is kept once.
            key = sys.intern(metric_key(name))
            if step > reached.get(key, self.latest[key].step if key in self.latest else -1):
                reached[key] = step
                found.append((key, float(value), step, ms))
        return found

    def add(self, points: list[MetricPoint]) -> None:
        """Take in points that are ``new``."""
        self.points += points
        self.latest |= {key: Latest(step, ms, value) for key, value, step, ms in points}

    def final(self, *, at_ms: int) -> list[MetricPoint]:
        """Return the points that make ``kept`` the latest values: at the last step, later than all there are."""
        found: list[MetricPoint] = []
        for name, value in self.kept.items():
            key = sys.intern(metric_key(name))
            last = self.latest.get(key)
            if last is None or last.value != value:
                step, ms = (0, at_ms) if last is None else (last.step, max(at_ms, last.ms + 1))
                found.append((key, float(value), step, ms))
        return found

    def drop_oldest(self, num_points: int) -> None:
        """Drop the oldest points."""
        del self.points[:num_points]
        self.in_flight = max(0, self.in_flight - num_points)
        self.dropped += num_points
        self.tags[DROPPED] = str(self.dropped)

    def take(self) -> Batch:
        """Return what is to be sent next."""
        points = self.points[:METRIC_BATCH]
        self.in_flight = len(points)
        last = self.in_flight == len(self.points)
        kept, ending = (self.kept, self.ending) if last else ({}, None)
        if ending is not None:
            points += self.final(at_ms=ending[1])
        return Batch(points, dict(self.tags), dict(self.params), kept, None if self.artifacts else ending)

    def sent(self, batch: Batch) -> None:
        """Forget the batch that was sent; tags and kept metrics may have new values meanwhile."""
        del self.points[: self.in_flight]
        self.in_flight = 0
        self.params = {}
        self.tags = {key: value for key, value in self.tags.items() if batch.tags.get(key) != value}
        self.kept = {} if self.kept is batch.kept else self.kept

    def clear(self) -> None:
        """Forget everything but the end."""
        self.params, self.points, self.tags, self.kept = {}, [], {}, {}
        self.artifacts.clear()

    def learn(self, run: Any) -> None:
        """Drop what MLflow's ``Run`` has already."""
        latest = latest_of(run)
        self.params = {key: value for key, value in self.params.items() if metric_key(key) not in run.data.params}
        self.points = [point for point in self.points if point[0] not in latest or point[2] > latest[point[0]].step]
        for key, point in latest.items():
            self.latest[key] = max(point, self.latest.get(key, point))
        if DROPPED in run.data.tags and not self.dropped:
            self.tags = {DROPPED: "0", **self.tags}
