"""A run's record in MLflow, over outages and restarts."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from raymlops.errors import NotFoundError, TrackingError
from raymlops.tracking.client import Tracker
from raymlops.tracking.tag_entries import entries
from raymlops.training.events import Event
from raymlops.training.runs.writer import REASON, RESTARTS, RunWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Watched(Tracker):
    """Counts what it is sent, and is away, or loses its answers, when told so."""

    away = False
    answers_lost = 0

    def __init__(self, uri: str, **rest: Any) -> None:
        super().__init__(uri, **rest)
        self.sent: list[list[tuple[str, int]]] = []

    def check(self) -> None:
        self._here()

    def log_batch(self, run_id: str, points: Any = (), tags: Any = None, **rest: Any) -> None:
        self._here()
        self.sent.append([(name, step) for name, _, step, _ in points])
        super().log_batch(run_id, points, tags, **rest)
        if self.answers_lost:
            self.answers_lost -= 1
            raise TrackingError("the answer is lost")

    def end_run(self, run_id: str, status: Any, **rest: Any) -> None:
        self._here()
        super().end_run(run_id, status, **rest)

    def _here(self) -> None:
        if self.away:
            raise TrackingError("away")


@pytest.fixture
def store(storage_path: Path) -> Watched:
    return Watched(f"sqlite:///{storage_path}/mlflow.db")


@pytest.fixture
def run_id(store: Watched) -> str:
    return store.start_run("tiny", name="run", tags={"raymlops.kind": "run"})


def loss(step: int, *, value: float | None = None, kind: Any = "step", **rest: Any) -> Event:
    value = 1 / step if value is None else value
    return Event(kind, step=step, metrics={"train/loss": value}, timestamp_ms=1000 + step, **rest)


def restart(reason: str, *, step: int, workers: int) -> Event:
    return Event("restart", step=step, workers=workers, message=reason)


def history(store: Tracker, run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in store.client.get_metric_history(run_id, name)]


def until(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_an_mlflow_lost_in_the_middle_costs_no_training(store: Watched, run_id: str) -> None:
    """Metrics wait while MLflow is away, and are all there when it is back before the end."""
    seen: list[Event] = []
    writer = RunWriter(store, run_id, on_event=seen.append)
    store.away = True
    writer(loss(1))
    until(lambda: writer(loss(2)) or any("buffered until it does: away" in event.message for event in seen))
    store.away = False
    writer(loss(3))
    writer.close("FINISHED", tags={"a": "b"})
    assert history(store, run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    run = store.run(run_id)
    assert (run.info.status, run.data.tags["a"]) == ("FINISHED", "b")
    assert "accepts data again" in seen[-1].message


def test_an_event_never_waits_for_mlflow_and_is_no_request(store: Watched, run_id: str) -> None:
    """While one request hangs, a hundred events are taken in; they travel together."""
    hangs, goes_on = threading.Event(), threading.Event()

    class Slow(Watched):
        def log_batch(self, *args: Any, **rest: Any) -> None:
            hangs.set()
            assert goes_on.wait(10)
            super().log_batch(*args, **rest)

    slow = Slow(store.uri)
    writer = RunWriter(slow, run_id)
    writer(loss(1))
    assert hangs.wait(10)
    for step in range(2, 102):
        writer(loss(step))
    goes_on.set()
    writer.close("FINISHED", tags={})
    assert [len(batch) for batch in slow.sent] == [1, 100]
    assert len(history(store, run_id)) == 101


def test_a_step_counts_once(store: Watched, run_id: str) -> None:
    """What a new attempt does again is not written again, nor is the epoch's mean at the step of its last steps."""
    writer = RunWriter(store, run_id)
    for step in (10, 20, 30):
        writer(loss(step))
    for step in (20, 30, 40):
        writer(loss(step, value=7.0))
    writer(loss(40, value=9.0, kind="epoch", epoch=2))
    writer.close("FINISHED", tags={})
    assert history(store, run_id) == [(10, 0.1), (20, 0.05), (30, 1 / 30), (40, 7.0)]
    assert history(store, run_id, "epoch") == [(40, 2.0)]


def test_a_run_goes_on_where_it_was(store: Watched, run_id: str) -> None:
    """Reopened, it is RUNNING, says no more why it ended, and takes only steps that it has not."""
    first = RunWriter(store, run_id)
    first(restart("a worker died", step=10, workers=2))
    for step in (10, 20):
        first(loss(step))
    first.close_failed(ValueError("no"))
    assert store.run(run_id).data.tags["raymlops.reason"] == "ValueError: no"

    previous = store.reopen_run(run_id, without_tags=[REASON])
    assert store.run(run_id).info.status == "RUNNING"
    assert "raymlops.reason" not in store.run(run_id).data.tags
    second = RunWriter(store, run_id, previous=previous)
    second(restart("resumed", step=10, workers=1))
    for step in (20, 30):
        second(loss(step))
    second.close("FINISHED", tags={})
    assert [step for step, _ in history(store, run_id)] == [10, 20, 30]
    tags = store.run(run_id).data.tags
    assert [(entry["step"], entry["workers"], entry["reason"]) for entry in entries(tags, RESTARTS)] == [
        (10, 2, "a worker died"),
        (10, 1, "resumed"),
    ]
    assert tags["raymlops.restart_count"] == "2"


def test_a_deleted_run_is_not_reopened(store: Watched, run_id: str) -> None:
    """The error says how to bring it back; an unknown id is not there either."""
    store.client.delete_run(run_id)
    with pytest.raises(NotFoundError, match="was deleted"):
        store.reopen_run(run_id)
    with pytest.raises(NotFoundError, match="no run"):
        store.reopen_run("0" * 32)


def test_a_checkpoint_fills_what_a_dead_driver_left_out(store: Watched, run_id: str) -> None:
    """Of its points those behind the last step of each name are written, with their own time."""
    store.log_batch(run_id, [("train/loss", 0.5, 10, 1), ("train/lr", 0.1, 20, 2)])
    writer = RunWriter(store, run_id, previous=store.reopen_run(run_id))
    points = [(name, 0.5, step, step) for step in (10, 20, 30) for name in ("train/loss", "train/lr")]
    assert writer.catch_up(points) == 3
    assert writer.catch_up(points) == 0
    writer.close("FINISHED", tags={})
    assert history(store, run_id) == [(10, 0.5), (20, 0.5), (30, 0.5)]
    assert [step for step, _ in history(store, run_id, "train/lr")] == [20, 30]
    assert [point.timestamp for point in store.client.get_metric_history(run_id, "train/loss")] == [1, 20, 30]


def test_a_lost_answer_doubles_nothing(store: Watched, run_id: str) -> None:
    """Whether a request was carried out is looked up before anything is sent again."""
    store.answers_lost = 1
    writer = RunWriter(store, run_id)
    for step in (1, 2, 3):
        writer(loss(step))
    writer.close("FINISHED", tags={"a": "b"})
    sent = [point for batch in store.sent for point in batch]
    assert sent == [("train/loss", 1), ("train/loss", 2), ("train/loss", 3)]
    assert history(store, run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert store.run(run_id).data.tags["a"] == "b"


def test_an_end_without_mlflow_is_waited_for_then_an_error(store: Watched, run_id: str) -> None:
    """It says how much is lost; the run may still be closed later."""
    writer = RunWriter(store, run_id)
    store.away = True
    for step in (1, 2):
        writer(loss(step))
    with pytest.raises(TrackingError, match=rf"away; run {run_id} is incomplete in MLflow: 2 points are not written"):
        writer.close("FINISHED", tags={}, wait_s=0.1)
    store.away = False
    writer.close("FAILED", tags={})
    assert store.run(run_id).info.status == "FAILED"
    assert len(history(store, run_id)) == 2


def test_a_failure_without_mlflow_has_a_note(store: Watched, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error that ended the training stays the error; an interrupted user waits less."""
    store.away = True
    error = KeyboardInterrupt()
    with monkeypatch.context() as impatient:
        impatient.setattr("raymlops.training.runs.writer.KILLED_WAIT_S", 0.05)
        RunWriter(store, run_id).close_failed(error)
    assert "may still be marked RUNNING" in error.__notes__[0]
    store.away = False
    RunWriter(store, run_id).close_failed(error)
    assert store.run(run_id).info.status == "KILLED"


def test_a_refusal_is_not_waited_for(store: Watched, run_id: str) -> None:
    """MLflow is there and says no: nobody may log to a deleted run."""
    store.client.delete_run(run_id)
    writer = RunWriter(store, run_id)
    writer(loss(1))
    started = time.monotonic()
    with pytest.raises(TrackingError, match="must be in the 'active' state"):
        writer.close("FINISHED", tags={})
    assert time.monotonic() - started < 10


def test_progress_is_on_the_run(store: Watched, run_id: str) -> None:
    """20 of 50 steps in 10 s: 15 s to go."""
    writer = RunWriter(store, run_id)
    writer(loss(20, epoch=2, epochs=5, steps=50, elapsed_s=10.0, rows_per_s=123.4, workers=2))
    writer.close("FINISHED", tags={})
    progress = json.loads(store.run(run_id).data.tags["raymlops.progress"])
    assert progress.pop("at")
    assert progress == {
        "epoch": 2, "epochs": 5, "step": 20, "steps": 50, "eta_s": 15, "rows_per_s": 123.4, "workers": 2
    }  # fmt: skip


def test_many_restarts_fit_a_tag(store: Watched, run_id: str) -> None:
    """The newest twenty at most, as JSON that can be read, however long their reasons; all are counted."""
    writer = RunWriter(store, run_id)
    for number in range(25):
        writer(restart(f"{number} " + 'ä"' * 500, step=number, workers=2))
    writer.close("FINISHED", tags={})
    tags = store.run(run_id).data.tags
    found = entries(tags, RESTARTS)
    assert 10 <= len(found) <= 20
    assert [entry["step"] for entry in found] == list(range(25 - len(found), 25))
    assert tags["raymlops.restart_count"] == "25"


def test_a_run_has_a_log(store: Watched, run_id: str, tmp_path: Path) -> None:
    """Steps now and then; epochs, restarts and messages always; how it ended at the end."""
    now = [0.0]
    writer = RunWriter(store, run_id, clock=lambda: now[0], log_uri=f"{tmp_path}/runs/log.txt")
    for step in range(1, 13):
        now[0] = float(step)
        writer(loss(step))
    writer(loss(12, kind="epoch", epoch=1, epochs=3))
    writer(restart("a node left", step=10, workers=1))
    writer.close_failed(ValueError("no"))
    lines = [line.partition(" ")[2] for line in (tmp_path / "runs" / "log.txt").read_text().splitlines()]
    assert lines == [
        "event=step train/loss=1",
        "event=step train/loss=0.090909",
        "event=epoch epoch=1/3 train/loss=0.083333",
        'event=restart epoch=1/3 workers=1 msg="a node left"',
        'event=closed status=FAILED reason="ValueError: no"',
    ]


def test_a_display_that_fails_is_in_the_log_and_gets_no_more(store: Watched, run_id: str, tmp_path: Path) -> None:
    """The run is closed with all its metrics; a signal inside the display is no failure of it."""
    seen: list[Event] = []

    def fail(event: Event) -> None:
        seen.append(event)
        raise OSError("no terminal") if event.step < 3 else KeyboardInterrupt

    writer = RunWriter(store, run_id, on_event=fail, log_uri=f"{tmp_path}/log.txt")
    writer(loss(1))
    writer(loss(2))
    writer.close("FINISHED", tags={})
    assert ([event.step for event in seen], str(writer.display_error)) == ([1], "no terminal")
    assert "the display failed: OSError: no terminal" in (tmp_path / "log.txt").read_text()
    assert [step for step, _ in history(store, run_id)] == [1, 2]
    with pytest.raises(KeyboardInterrupt):
        RunWriter(store, run_id, on_event=fail)(loss(3))


def test_a_log_that_cannot_be_written_is_told_once(store: Watched, run_id: str, tmp_path: Path) -> None:
    """A file where its folder should be: training goes on."""
    (tmp_path / "runs").write_text("in the way")
    seen: list[Event] = []
    writer = RunWriter(store, run_id, on_event=seen.append, log_uri=f"{tmp_path}/runs/log.txt")
    for step in (1, 2):
        writer(loss(step, kind="epoch"))
    writer.close("FINISHED", tags={})
    assert len([event for event in seen if "log" in event.message]) == 1
