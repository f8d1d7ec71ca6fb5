"""The background sender, over an MLflow that is away or rejects what it is sent."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from raymlops.errors import TrackingError
from raymlops.tracking.pending import PendingRun
from raymlops.tracking.sender import Sender

if TYPE_CHECKING:
    from collections.abc import Callable


class Store:
    """An MLflow in memory: the points of each run by name and step, its tags and its status."""

    shown_uri = "memory"

    def __init__(self) -> None:
        self.away = False
        self.rejects: set[str] = set()
        """Runs whose batches are rejected."""
        self.points: dict[str, list[tuple[str, int]]] = {}
        self.values: list[tuple[str, float, int, int]] = []
        self.tags: dict[str, dict[str, str]] = {}
        self.ended: dict[str, str] = {}

    def check(self) -> None:
        if self.away:
            raise TrackingError("away")

    def run(self, run_id: str) -> Any:
        self.check()
        steps = [SimpleNamespace(key=key, value=value, step=step, timestamp=ms) for key, value, step, ms in self.values]
        data = SimpleNamespace(params={}, tags={}, to_proto=lambda: SimpleNamespace(metrics=steps))
        return SimpleNamespace(data=data, info=SimpleNamespace(lifecycle_stage="active", status="RUNNING"))

    def log_batch(self, run_id: str, points: Any, tags: Any, *, params: Any) -> None:
        del params
        self.check()
        if run_id in self.rejects:
            cause = ValueError()
            cause.error_code = "BAD_REQUEST"  # type: ignore[attr-defined]
            raise TrackingError("rejected") from cause
        self.points.setdefault(run_id, []).extend((name, step) for name, _, step, _ in points)
        self.values += points
        self.tags.setdefault(run_id, {}).update(tags)

    def end_run(self, run_id: str, status: str, *, end_time_ms: int) -> None:
        del end_time_ms
        self.check()
        self.ended[run_id] = status


@pytest.fixture
def store() -> Store:
    return Store()


def over(store: Store, **options: Any) -> Sender:
    """Return a sender that retries almost at once."""
    return Sender(store, max_retry_s=0.001, **options)  # type: ignore[arg-type]


def log(sender: Sender, run: PendingRun, *steps: int) -> None:
    for step in steps:
        sender.put(run, [("loss", 1.0, step, step)])


def until(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_oldest_points_are_dropped_and_counted(store: Store) -> None:
    """25 points where 10 fit: 15 are dropped, on top of 2 of an earlier attempt; told once."""
    store.away = True
    sender, run = over(store, max_pending=10), PendingRun("run", "r", dropped=2)
    log(sender, run, *range(25))
    until(lambda: sender.failing)
    store.away = False
    sender.end(run, "FINISHED")
    sender.finish(wait_s=10.0)
    assert store.points["r"] == [("loss", step) for step in range(15, 25)]
    assert store.tags["r"]["raymlops.dropped_points"] == "17"
    assert sum("10 points are pending: the oldest are dropped" in text for text in sender.notices()) == 1


def test_a_rejected_run_delays_no_other(store: Store) -> None:
    """Its batch stays pending until the end; what follows the rejection is still sent."""
    store.rejects.add("a")
    sender, rejected, other = over(store), PendingRun("a", "a"), PendingRun("b", "b")
    log(sender, rejected, 1)
    until(lambda: len(rejected.rejections) > 5)
    log(sender, other, 1)
    until(lambda: store.points.get("b"))
    store.rejects.clear()
    sender.end(rejected, "FINISHED")
    sender.end(other, "FINISHED")
    sender.finish(wait_s=10.0)
    assert store.points == {"a": [("loss", 1)], "b": [("loss", 1)]}


@pytest.mark.parametrize("recoverable", [False, True])
def test_a_batch_that_is_rejected_to_the_end_is_an_error_and_the_run_ends(store: Store, *, recoverable: bool) -> None:
    """Of a run whose points are logged again later, it is given up before the end."""
    store.rejects.add("r")
    sender, run = over(store), PendingRun("trial 1", "r", recoverable=recoverable)
    log(sender, run, 1)
    until(lambda: run.incomplete if recoverable else len(run.rejections) > 3)
    assert run.has_batch != recoverable
    sender.end(run, "FINISHED")
    with pytest.raises(TrackingError, match="MLflow rejected part of trial 1: rejected"):
        sender.finish(wait_s=10.0)
    assert store.ended == {"r": "FINISHED"}


def test_an_outage_is_told_once_and_its_end_too(store: Store) -> None:
    """However many requests fail and however many runs wait."""
    store.away = True
    sender, runs = over(store), [PendingRun(name, name) for name in "abc"]
    for run in runs:
        log(sender, run, 1)
    until(lambda: len(sender.failing) == 3)
    store.away = False
    for run in runs:
        sender.end(run, "FINISHED")
    sender.finish(wait_s=10.0)
    assert sender.notices() == [
        "MLflow accepts no data; it is buffered until it does: away",
        "MLflow accepts data again: sending what was buffered",
    ]


def test_the_last_values_are_those_of_the_model_that_is_kept(store: Store) -> None:
    """The best epoch is logged once more, at the last step and after it; what is the last already is not."""
    sender, run = over(store), PendingRun("run", "r")
    for step, loss in enumerate([3.0, 1.0, 2.0]):
        sender.put(run, [("loss", loss, step, 50 + step), ("rows", 7.0, step, 50 + step)])
    sender.end(run, "FINISHED", kept={"loss": 1.0, "rows": 7.0, "late": 4.0}, at_ms=20)
    sender.finish(wait_s=10.0)
    losses = [(value, step, ms) for name, value, step, ms in store.values if name == "loss"]
    assert losses == [(3.0, 0, 50), (1.0, 1, 51), (2.0, 2, 52), (1.0, 2, 53)]
    assert [point[1:] for point in store.values if point[0] == "late"] == [(4.0, 0, 20)]
    assert sum(point[0] == "rows" for point in store.values) == 3


def test_kept_values_are_sent_once_after_an_outage(store: Store) -> None:
    """The request was carried out and its answer was lost: what MLflow has already is not sent again."""
    sender, run, broken = over(store), PendingRun("run", "r"), []

    def late(*args: Any, **options: Any) -> None:
        Store.log_batch(store, *args, **options)
        if not broken:
            broken.append(True)
            raise TrackingError("away")

    store.log_batch = late  # type: ignore[method-assign]
    sender.put(run, [("loss", 1.0, 1, 1), ("loss", 2.0, 2, 2)])
    sender.end(run, "FINISHED", kept={"loss": 1.0}, at_ms=3)
    sender.finish(wait_s=10.0)
    assert store.values == [("loss", 1.0, 1, 1), ("loss", 2.0, 2, 2), ("loss", 1.0, 2, 3)]
    assert store.ended == {"r": "FINISHED"}
