"""A run on workers goes on whatever becomes of the loader processes that read its batches, and leaves none behind."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from loader_processes import loader_processes
from supervised import Recorder, once, project, run

if TYPE_CHECKING:
    from pathlib import Path

    from raymlops.project import Project

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


def made(folder: Path, **train: Any) -> Project:
    return project(folder, recipe="loaded:Unhurried", config={"train_rows": 2000}, **train)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("number", "said"),
    [
        pytest.param(signal.SIGKILL, r"loader process 0 \(pid \d+\) was killed by SIGKILL while it read", id="killed"),
        pytest.param(signal.SIGSTOP, r"loader process 0 \(pid \d+\) has sent no heartbeat", id="stopped"),
    ],
)
def test_a_lost_loader_costs_nothing_but_time(tmp_path: Path, number: signal.Signals, said: str) -> None:
    """The attempt is restarted from its checkpoint, for a reason that names rows, and ends as without loaders."""
    alone = run(made(tmp_path / "alone"), Recorder())
    recorder = Recorder(at=once(23, lambda: loader_processes()[0].send_signal(number)))
    disturbed = run(made(tmp_path / "disturbed", data_workers=1, hang_timeout_s=10.0), recorder)
    (restart,) = recorder.restarts
    assert restart.step >= 20
    assert re.search(said + r".* rows of the train split \(\d+, ", restart.reason), restart.reason
    assert disturbed.outcome.history == alone.outcome.history
    assert all(torch.equal(weight, disturbed.weights[name]) for name, weight in alone.weights.items())
    assert loader_processes() == []
