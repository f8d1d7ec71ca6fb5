"""A run on workers goes on whatever dies in it, ends when it should, and leaves nothing behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import supervised
import torch
from supervised import Ended, Recorder, left_behind, once, project, run, signal_one

from raymlops.errors import InsufficientResourcesError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from raymlops.training.events import Event


pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(autouse=True)
def nothing_left_behind(ray_local: Any) -> Iterator[None]:
    """Look for actors and placement groups after each test; the last to leave take a moment."""
    yield
    deadline = time.monotonic() + 10
    while left_behind() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_behind() == []


@pytest.fixture(scope="module")
def elastic(ray_local: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Recorder]:
    """Return a run of between one and four workers to which nothing happens, and what it said."""
    recorder = Recorder()
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(project(folder, num_workers=[1, 4], cpus_per_worker=1.0), recorder), recorder


@pytest.fixture(scope="module")
def undisturbed(elastic: tuple[Ended, Recorder]) -> Ended:
    """Return what the run reaches when nothing happens."""
    return elastic[0]


def assert_equal(one: Ended, other: Ended) -> None:
    """Both have the same parameters, bit by bit, and the same history."""
    assert one.outcome.steps == other.outcome.steps == 48
    assert one.outcome.history == other.outcome.history
    for name, weight in one.weights.items():
        assert torch.equal(weight, other.weights[name]), name


@pytest.mark.parametrize(
    ("victim", "reason"),
    [
        pytest.param("RayTrainWorker", r"rank \d: its process \d+ on .* was killed or crashed", id="worker"),
        pytest.param("Mailbox", "the mailbox of its workers died", id="mailbox", marks=pytest.mark.soak),
    ],
)
def test_a_killed_process_costs_nothing_but_time(undisturbed: Ended, tmp_path: Path, victim: str, reason: str) -> None:
    """kill -9 in the middle of the second epoch: the run goes on from its newest checkpoint to the same parameters."""
    recorder = Recorder(at=once(23, lambda: signal_one(victim, signal.SIGKILL)))
    assert_equal(run(project(tmp_path), recorder), undisturbed)
    (restart,) = recorder.restarts
    assert restart.workers == 2
    assert restart.step >= 20
    assert re.search(rf"^resumed with 2 workers after \d+\.\d s: {reason}", restart.reason), restart.reason


@pytest.mark.soak
@pytest.mark.parametrize("dies", [False, True])
def test_a_test_split_that_breaks_a_worker_forfeits_nothing(tmp_path: Path, dies: bool) -> None:
    """The others would wait for it: a last attempt finds the training finished, and ends it without the test split.

    What callbacks log comes from the first worker: an image of the evaluation after each of two epochs, and so on.
    """
    recorder = Recorder()
    ended = run(
        project(tmp_path, recipe="watched:BreaksOnTestRows", config={"dies": dies}, epochs=2, max_restarts=0), recorder
    )
    assert (len(ended.outcome.history), ended.outcome.steps, ended.outcome.test) == (2, 32, {})
    (restart,) = recorder.restarts
    assert restart.step == 32
    assert "the training is finished" in restart.reason
    assert "was killed or crashed" in restart.reason if dies else "a length of no training row" in restart.reason
    artifacts = [(event.artifact.kind, event.artifact.step) for event in recorder.events if event.artifact is not None]
    assert artifacts == [(kind, step) for step in (16, 32) for kind in ("image", "table", "figure")]


@pytest.mark.soak
def test_a_stopped_worker_is_replaced(undisturbed: Ended, tmp_path: Path) -> None:
    """SIGSTOP: after the configured time the stacks of the ranks are saved, and others take their place."""
    recorder = Recorder(at=once(23, lambda: signal_one("RayTrainWorker", signal.SIGSTOP)))
    assert_equal(run(project(tmp_path, hang_timeout_s=8), recorder), undisturbed)
    (restart,) = recorder.restarts
    assert "no heartbeat of rank" in restart.reason
    (stacks,) = (tmp_path / "runs/run/stacks").iterdir()
    text = stacks.read_text()
    assert "no answer: the process is stopped" in text
    assert "in default_loop" in text
    assert any(str(stacks) in message for message in recorder.messages)


@pytest.mark.soak
def test_a_rule_turns_a_failure_into_another_attempt(tmp_path: Path) -> None:
    """on_failure says retry: it is tried as often as max_restarts allows, and then the error is the recipe's."""
    recorder = Recorder()
    rules = [{"match": "raised ValueError: step 3", "action": "retry"}]
    with pytest.raises(RecipeError, match="step 3"):
        run(project(tmp_path, recipe="tiny:RaisesInStep", on_failure=rules, max_restarts=1), recorder)
    assert len(recorder.restarts) == 1


@pytest.mark.soak
def test_a_throttled_store_costs_nothing_but_time(undisturbed: Ended, tmp_path: Path) -> None:
    """In the recipe's own code on one worker: both start again after 5 s, from the newest checkpoint."""
    recorder = Recorder()
    config = {"marker": str(tmp_path / "refused")}
    assert_equal(run(project(tmp_path, recipe="slow:Throttled", config=config), recorder), undisturbed)
    (restart,) = recorder.restarts
    assert restart.step >= 20
    assert "SLOW_DOWN" in restart.reason
    assert any(
        "rank 1: RecipeError" in text and "retrying in 5 s, restart 1 of 3" in text for text in recorder.messages
    )


@pytest.mark.soak
def test_a_reason_to_stop_makes_a_last_checkpoint(undisturbed: Ended, tmp_path: Path) -> None:
    """Nothing done is lost: the next run goes on after the very step, to the same parameters."""
    asked: list[str] = []
    first = Recorder(at=once(22, lambda: asked.append("interrupted")))
    with pytest.raises(KeyboardInterrupt):
        run(project(tmp_path), first, stop=lambda: "".join(asked))
    done = max(event.step for event in first.events)
    second = Recorder()
    assert_equal(run(project(tmp_path), second), undisturbed)
    assert second.messages[0] == f"starting 2 workers after step {done}"
    assert min(event.step for event in second.events if event.kind == "step") == done + 1


@pytest.mark.soak
def test_a_second_reason_ends_everything_at_once(tmp_path: Path) -> None:
    """Whoever asks twice does not want to wait for a checkpoint."""
    asked: list[float] = []

    def stop() -> str:
        if asked and time.monotonic() - asked[0] > 0.5:
            raise KeyboardInterrupt
        return ""

    recorder = Recorder(at=once(5, lambda: asked.append(time.monotonic())))
    with pytest.raises(KeyboardInterrupt):
        run(project(tmp_path), recorder, stop=stop)
    assert time.monotonic() - asked[0] < 10


def test_a_reason_to_stop_while_workers_start_ends_them(tmp_path: Path) -> None:
    """Nothing was done that a checkpoint could keep, so that nobody waits for one."""
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        run(project(tmp_path), recorder, stop=lambda: "interrupted" if recorder.events else "")
    assert recorder.messages == ["starting 2 workers"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("raymlops-attempt")]


@pytest.mark.soak
def test_a_worker_that_dies_while_it_starts_is_replaced(undisturbed: Ended, tmp_path: Path) -> None:
    """Its attempt ends, and the next one runs with others."""
    killed: list[bool] = []

    def kill(event: Event) -> None:
        if event.message == "starting 2 workers" and not killed:
            killed.append(True)
            signal_one("RayTrainWorker", signal.SIGKILL)

    recorder = Recorder(at=kill)
    ended = run(project(tmp_path), recorder)
    (restart,) = recorder.restarts
    assert (restart.step, restart.workers) == (0, 2)
    assert_equal(ended, undisturbed)


@pytest.mark.soak
def test_a_grace_that_is_over_ends_the_workers(tmp_path: Path) -> None:
    """Workers that do not get there in time are ended; an older checkpoint is where the run goes on."""
    recorder = Recorder(at=once(5, lambda: signal_one("RayTrainWorker", signal.SIGSTOP)))
    with pytest.raises(KeyboardInterrupt):
        run(
            project(tmp_path, stop_grace_s=2),
            recorder,
            stop=lambda: "interrupted" if any(event.step >= 5 for event in recorder.events) else "",
        )
    assert "the last checkpoint was not written within 2 s" in recorder.messages


def test_no_worker_is_asked_for_that_does_not_fit(tmp_path: Path) -> None:
    """After the configured wait it is said what is there; nothing was started."""
    recorder = Recorder()
    with pytest.raises(InsufficientResourcesError, match=r"(?s)requests 3 workers of 1 CPU.*waited \d+ s") as error:
        run(project(tmp_path, num_workers=3, cpus_per_worker=1.0, wait_s=1.5), recorder)
    assert "this cluster holds at most 2" in error.value.message
    assert recorder.messages == ["waiting up to 1.5 s for room for 3 workers"]


@pytest.mark.soak
def test_a_killed_driver_takes_its_workers_along(undisturbed: Ended, ray_local: Any, tmp_path: Path) -> None:
    """kill -9 of the process that everything hangs on: its workers end within seconds, and another one goes on."""
    arguments = [sys.executable, supervised.__file__, ray_local.address, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if line.strip() == "23":
                break
        driver.kill()
        killed_s = time.monotonic()
    while left_behind():
        assert time.monotonic() - killed_s < 20
        time.sleep(0.1)
    recorder = Recorder()
    assert_equal(run(project(tmp_path), recorder), undisturbed)
    assert re.match(r"starting 2 workers after step \d+", recorder.messages[0])


def test_an_elastic_run_takes_what_there_is(elastic: tuple[Ended, Recorder]) -> None:
    """Between one and four workers of a whole CPU on two CPUs: two, whose numbers all runs of two here are held to."""
    assert elastic[1].messages == ["starting 2 workers"]
