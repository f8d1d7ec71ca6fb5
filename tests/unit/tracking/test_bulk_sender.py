"""Runs that are written together, over an MLflow that is away, rejects some of them, or is slow."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from raymlops.errors import TrackingError
from raymlops.tracking.bulk_sender import GATHER_S, MAX_RUNS, BulkSender
from raymlops.tracking.pending import PendingRun
from raymlops.tracking.run_tables import NewRun
from raymlops.tracking.sender import FLUSH_EVERY_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.tracking.run_tables import RunWrite


class Store:
    """An MLflow in memory that notes what it is sent together, and takes requests of single runs, too."""

    shown_uri = "memory"

    def __init__(self) -> None:
        self.away = False
        self.refuses: set[str] = set()
        """Names of runs that make the whole transaction fail."""
        self.leaves: set[str] = set()
        """Names of runs that are left out."""
        self.writes: list[list[RunWrite]] = []
        self.attempts: list[int] = []
        """The number of runs of each attempt."""
        self.single: list[str] = []

    def check(self) -> None:
        if self.away:
            raise TrackingError("away")

    def write_runs(self, writes: Sequence[RunWrite]) -> set[str]:
        self.attempts.append(len(writes))
        self.check()
        if self.refuses & {write.new.name for write in writes if write.new}:
            raise refusal()
        taken = [write for write in writes if write.new is None or write.new.name not in self.leaves]
        self.writes.append(taken)
        return {write.run_id for write in taken}

    def log_batch(self, run_id: str, points: Any, tags: Any, *, params: Any) -> None:
        del points, tags, params
        self.single.append(f"log {run_id}")

    def run(self, run_id: str) -> Any:
        self.single.append(f"read {run_id}")
        data = SimpleNamespace(params={}, tags={}, to_proto=lambda: SimpleNamespace(metrics=[]))
        return SimpleNamespace(data=data, info=SimpleNamespace(lifecycle_stage="active", status="RUNNING"))

    def end_run(self, run_id: str, status: str, *, end_time_ms: int) -> None:
        del end_time_ms
        self.single.append(f"end {run_id} {status}")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refusal() -> TrackingError:
    error = TrackingError("rejected")
    error.__cause__ = ValueError()
    error.__cause__.error_code = "BAD_REQUEST"  # type: ignore[attr-defined]
    return error


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sender(store: Store, clock: Clock) -> BulkSender:
    return BulkSender(store, clock=clock)


def new(number: int) -> PendingRun:
    """Return a run of one point and one parameter."""
    run = PendingRun(f"r{number}", recoverable=True, params={"a": "1"}, create=lambda _maybe: f"single {number}")
    run.new_run = NewRun(f"id{number}", "e", run.name, {}, 0)
    return run


def ended(sender: BulkSender, number: int) -> PendingRun:
    run = new(number)
    sender.put(run, [("loss", 1.0, 0, 0)])
    sender.end(run, "FINISHED", at_ms=9)
    return run


def until(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def later(sender: BulkSender, clock: Clock, seconds: float) -> None:
    with sender.changed:
        clock.now += seconds
        sender.changed.notify_all()


def names(writes: Sequence[RunWrite]) -> set[str]:
    return {write.run_id for write in writes}


def test_runs_that_end_within_a_second_are_written_together(store: Store, sender: BulkSender, clock: Clock) -> None:
    """The first at once, since none waits; each with all there is of it."""
    ended(sender, 0)
    until(lambda: store.writes)
    for number in range(1, 5):
        ended(sender, number)
    later(sender, clock, GATHER_S)
    until(lambda: len(store.writes) == 2)
    assert [names(writes) for writes in store.writes] == [{"id0"}, {"id1", "id2", "id3", "id4"}]
    (first,) = store.writes[0]
    assert (first.params, first.ending, first.points) == ({"a": "1"}, ("FINISHED", 9), [("loss", 1.0, 0, 0)])
    sender.finish(wait_s=10)
    assert store.single == []


def test_a_long_run_is_written_while_it_runs(store: Store, sender: BulkSender, clock: Clock) -> None:
    """A second after its start, then every few seconds, then its end: beside others, and by no request of its own."""
    run = new(0)
    sender.put(run, [("loss", 1.0, 0, 0)])
    run.flush_s = FLUSH_EVERY_S
    ended(sender, 1)
    until(lambda: len(store.writes) == 1)
    ended(sender, 2)
    later(sender, clock, GATHER_S)
    until(lambda: len(sender.open) == 1)
    assert [names(writes) for writes in store.writes] == [{"id1"}, {"id0", "id2"}]
    sender.put(run, [("loss", 1.0, 1, 1)])
    later(sender, clock, FLUSH_EVERY_S)
    until(lambda: len(store.writes) == 3)
    assert names(store.writes[2]) == {"id0"}
    sender.end(run, "FINISHED", at_ms=7)
    sender.finish(wait_s=10)
    assert store.writes[3] == [("id0", None, [], {}, {}, ("FINISHED", 7))]
    assert store.single == []


def test_an_outage_ends_where_it_began(store: Store) -> None:
    """What failed together is written together, in bounded transactions; it is told once."""
    sender = BulkSender(store, max_retry_s=0.001)
    store.away = True
    for number in range(2 * MAX_RUNS):
        ended(sender, number)
    until(lambda: sender.failing)
    store.away = False
    sender.finish(wait_s=10)
    assert max(store.attempts) <= MAX_RUNS
    assert sorted(write.run_id for writes in store.writes for write in writes) == sorted(
        f"id{number}" for number in range(2 * MAX_RUNS)
    )
    assert len(sender.notices()) == 2
    assert store.single == []


def test_a_run_that_the_database_rejects_delays_no_other(store: Store) -> None:
    """Each is then written by itself, and the one that is rejected again is sent by MLflow's client.

    That reads first what there is of it: an answer may have been lost.
    """
    sender = BulkSender(store, max_retry_s=0.001)
    store.refuses = {"r1"}
    runs = [new(number) for number in range(3)]
    with sender.changed:
        for run in runs:
            sender.end(run, "FINISHED")
    until(lambda: not sender.open)
    sender.finish(wait_s=10)
    assert store.attempts == [3, 1, 1, 1]
    assert [run.run_id for run in runs] == ["id0", "single 1", "id2"]
    assert store.single == ["read single 1", "log single 1", "end single 1 FINISHED"]


def test_a_run_that_was_rejected_is_written_with_no_other(sender: BulkSender) -> None:
    """Neither the first of them nor any other."""
    with sender.changed:
        rejected, *others = runs = [new(number) for number in range(3)]
        for run in runs:
            sender.open[run.name], run.due_s = run, 0.0
        rejected.rejections.append(refusal())
        assert sender._together(rejected) == [rejected]
        assert sender._together(others[0]) == others


def test_a_run_that_is_left_out_is_sent_alone(store: Store, sender: BulkSender) -> None:
    """By requests of its own: MLflow's client says what is wrong with it, if anything is."""
    store.leaves = {"r1"}
    runs = [new(number) for number in range(3)]
    with sender.changed:
        for run in runs:
            sender.end(run, "FINISHED")
    sender.finish(wait_s=10)
    assert [names(writes) for writes in store.writes] == [{"id0", "id2"}]
    assert store.single == ["log single 1", "end single 1 FINISHED"]
    assert [run.run_id for run in runs] == ["id0", "single 1", "id2"]


def test_an_answer_that_was_lost_is_repeated(store: Store) -> None:
    """With what has come since then; the ids are the same, so that nothing is there twice."""
    sender = BulkSender(store, max_retry_s=0.001)
    write, lost = store.write_runs, threading.Event()

    def late(writes: Sequence[RunWrite]) -> set[str]:
        written = write(writes)
        if not lost.is_set():
            lost.set()
            raise TrackingError("lost")
        return written

    store.write_runs = late  # type: ignore[method-assign]
    run = ended(sender, 0)
    sender.finish(wait_s=10)
    assert [names(writes) for writes in store.writes] == [{"id0"}, {"id0"}]
    assert store.writes[0] == store.writes[1]
    assert run.run_id == "id0"
