"""A run in this process goes on where the environment failed, and ends where the recipe did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from broken import Throttled
from loader_processes import loader_processes
from supervised import Recorder, once

from raymlops.data.prepare import prepare
from raymlops.errors import RecipeError
from raymlops.training.local_run import run_here
from raymlops.training.supervision.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable

Make = Any
THROTTLED = "AWS Error SLOW_DOWN during GetObject: Please reduce your request rate"


@pytest.fixture
def made(tiny_project: Any, tmp_path: Path) -> Make:
    """Return a request for a run of ten steps with a checkpoint every two, and what it says."""

    def make(
        *refused: BaseException, stop: Callable[[], str] = lambda: "", **train: Any
    ) -> tuple[RunRequest, Recorder]:
        Throttled.refused, Throttled.after, Throttled.calls = list(refused), 7, 0
        project = tiny_project(recipe="broken:Throttled", checkpoint_every_steps=2, epochs=2, **train)
        recorder = Recorder()
        folder = str(tmp_path / str(len(list(tmp_path.iterdir()))))
        return RunRequest(project, prepare(project), folder, recorder, stop=stop), recorder

    return make


def test_a_throttled_store_costs_nothing_but_time(made: Make) -> None:
    """Twice in a row after the seventh step: 5 s and 15 s, and the numbers of an undisturbed run."""
    undisturbed, _ = run_here(made()[0])
    waits: list[float] = []
    request, recorder = made(OSError(THROTTLED), ConnectionResetError(104, "Connection reset by peer"))
    outcome, _ = run_here(request, sleep=waits.append)
    assert outcome.history == undisturbed.history
    assert sum(waits) == 5 + 15
    assert [(restart.step, restart.reason.partition(" raised")[0]) for restart in recorder.restarts] == [
        (6, "resumed after step 6: RecipeError: Throttled.loss()"),
        (6, "resumed after step 6: RecipeError: Throttled.loss()"),
    ]
    assert recorder.messages[0].endswith("not the recipe; retrying in 5 s, restart 1 of 3 in a row")


def test_it_is_not_asked_for_ever(made: Make) -> None:
    """After max_restarts without a new checkpoint the error is the one that was raised, and says how often."""
    request, recorder = made(*[OSError(THROTTLED)] * 4, max_restarts=2)
    with pytest.raises(RecipeError, match="SLOW_DOWN") as caught:
        run_here(request, sleep=lambda _s: None)
    assert len(recorder.restarts) == 3  # the first came to a checkpoint of its own
    assert caught.value.__notes__ == [
        "restarted 2 times without a new checkpoint in between; train.max_restarts allows 2"
    ]


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(made: Make) -> None:
    """The search compares sizes; the damage is found where it is loaded, once, and the run ends as undisturbed."""
    undisturbed, _ = run_here(made()[0])
    asked = ["", "", "", "", "", "", "interrupted"]
    request, recorder = made(stop=lambda: asked.pop(0) if asked else "")
    with pytest.raises(KeyboardInterrupt):
        run_here(request)
    *_, newest = sorted(Path(request.checkpoints_uri).glob("step-*"))
    step = int(newest.name.split("-")[1])
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "model.safetensors").write_bytes(data)
    outcome, _ = run_here(request)
    assert outcome.history == undisturbed.history
    first, again = recorder.restarts
    assert first.reason == f"resumed after step {step}"
    assert 0 < again.step < step
    assert "DamagedError" in again.reason
    assert (newest.parent / f"damaged-{newest.name}").exists()


@pytest.mark.parametrize(
    "error",
    [ValueError("503"), torch.AcceleratorError("CUDA error: an illegal memory access was encountered")],
    ids=str,
)
def test_what_another_attempt_would_not_help_is_raised(made: Make, error: BaseException) -> None:
    """A bug; and an error of the GPU, which this process cannot use any more."""
    request, recorder = made(error)
    with pytest.raises(RecipeError, match=str(error)):
        run_here(request)
    assert recorder.restarts == []


def test_a_signal_ends_the_wait(made: Make) -> None:
    """As it would end the training."""
    waits: list[float] = []
    request, _ = made(OSError(THROTTLED), stop=lambda: "interrupted" if waits else "")
    with pytest.raises(KeyboardInterrupt):
        run_here(request, sleep=waits.append)
    assert len(waits) == 1


def test_a_killed_loader_costs_nothing_but_time(tiny_project: Any, tmp_path: Path) -> None:
    """kill -9 of a process that reads batches, after the seventh step: resumed, with the numbers of a run without."""

    def request(name: str, *, act: Callable[[], object], **train: Any) -> RunRequest:
        project = tiny_project(
            recipe="loaded:Unhurried", checkpoint_every_steps=2, epochs=3, log_every_steps=1, **train
        )
        return RunRequest(project, prepare(project), str(tmp_path / name), Recorder(at=once(7, act)), stop=lambda: "")

    undisturbed, _ = run_here(request("alone", act=lambda: None))

    def kill() -> None:
        loader_processes()[0].kill()

    disturbed = request("killed", act=kill, data_workers=2)
    outcome, _ = run_here(disturbed, sleep=lambda _s: None)
    assert outcome.history == undisturbed.history
    (restart,) = disturbed.writer.restarts
    assert restart.step >= 6
    assert "was killed by SIGKILL while it read" in restart.reason
    assert loader_processes() == []
