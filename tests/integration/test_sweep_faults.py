"""Trials that go wrong in every way there is, in one sweep: each fails alone, with its reason, and the others go on."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from optuna.trial import TrialState
from slow_sweep import journal, score_of
from sweep_driver import books

from raymlops.config.load import load_data
from raymlops.project import bind
from raymlops.tuning.sweep import sweep

if TYPE_CHECKING:
    from pathlib import Path

    from raymlops.project import Project
    from raymlops.tuning.reporting.progress import SweepEvent

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

REASONS = {
    "raises": r"ValueError: no such thing",
    "nan": r"validation/score is nan after epoch 1",
    "inf": r"validation/score is inf after epoch 1",
    "nothing": r"validation/score .*None",
    "text": r"validation/score .*'good'",
    "unreported": r"validation/score was not reported",
    "silent": r"ended without a report",
    "too_large": r"MemoryError",
    "hangs": r"no progress for \d+ s",
    "dies": r"the trial's process died: .* \(2 times\)",
}
"""What a trial's reason says, by its fault."""


def project(path: Path, *, config: dict[str, Any] | None = None, train: dict[str, Any], **section: Any) -> Project:
    return bind(
        load_data(
            {
                "project": {"name": "faults"},
                "recipe": {"import": "slow_sweep:Paced", "config": config or {}},
                "train": {"batch_size": 64, "threads_per_worker": 1, **train},
                "sweep": {
                    "metric": "validation/score",
                    "mode": "max",
                    "sampler": "random",
                    "scheduler": "none",
                    "checkpoint_every_s": 0,
                    **section,
                },
                "storage": {"path": str(path)},
            }
        )
    )


def test_each_fault_is_one_failed_trial_with_its_reason(storage_path: Path) -> None:
    """Ten trials go wrong in ten ways: those are FAILED in the record, the study and MLflow, the others complete."""
    faults = [*REASONS, "none", "none", "none"]
    swept = project(
        storage_path,
        train={"epochs": 3, "hang_timeout_s": 2},
        num_trials=len(faults),
        enqueue=[{"recipe.config.fault": fault} for fault in faults],
        space={
            "recipe.config.fault": {"categorical": [*REASONS, "none"]},
            "recipe.config.x": {"float": [0.0, 1.0]},
        },
    )
    record = sweep(swept)

    assert [trial.params["recipe.config.fault"] for trial in record.trials] == faults
    for trial in record.trials:
        fault = trial.params["recipe.config.fault"]
        if fault == "none":
            expected = score_of(trial.params["recipe.config.x"], 3)
            assert (trial.status, trial.value, trial.reason) == ("complete", expected, "")
        else:
            assert (trial.status, trial.value) == ("failed", None), fault
            assert re.search(REASONS[fault], trial.reason), (fault, trial.reason)
    kept = books(swept.spec, record.sweep_id)
    wanted = ["FAIL"] * len(REASONS) + ["COMPLETE"] * 3
    assert [trial.state for trial in kept.trials] == [TrialState[name] for name in wanted]
    runs = {int(run.data.tags["raymlops.trial"]): run for run in kept.children}
    assert len(runs) == len(kept.children) == len(faults)
    for trial in record.trials:
        run = runs[trial.number]
        assert (run.info.status, run.info.run_id) == ("FAILED" if trial.reason else "FINISHED", trial.run_id)
        assert run.data.tags.get("raymlops.reason", "") == trial.reason
    assert record.best.status == "complete"


@pytest.mark.soak
def test_a_trial_whose_process_is_killed_once_goes_on_from_its_checkpoint(storage_path: Path, tmp_path: Path) -> None:
    """kill -9 in its fourth epoch: it completes, no epoch before the last checkpoint is trained again or told twice."""
    file, epochs = tmp_path / "journal.txt", 8
    swept = project(
        storage_path,
        config={"journal": str(file), "epoch_s": 0.2},
        train={"epochs": epochs},
        num_trials=3,
        max_concurrent=1,
        space={"recipe.config.x": {"float": [0.0, 1.0]}},
    )
    said: list[str] = []
    victims: list[tuple[str, int]] = []

    def kill_once(event: SweepEvent) -> None:
        if event.message:
            said.append(event.message)
        at = {row.number: row for row in event.rows}
        if event.kind == "epoch" and event.number == 1 and at[1].epoch == 4 and not victims:
            x = repr(at[1].params["recipe.config.x"])
            pid = journal(file)[x][-1][1]
            victims.append((x, pid))
            os.kill(pid, signal.SIGKILL)

    record = sweep(swept, on_event=kill_once)

    ((x, pid),) = victims
    assert [trial.status for trial in record.trials] == ["complete"] * 3
    assert any("trial 1 resumes in another process" in text for text in said)
    trained = journal(file)
    before = [epoch for epoch, by in trained[x] if by == pid]
    after = [epoch for epoch, by in trained[x] if by != pid]
    assert before == list(range(1, len(before) + 1))
    # At the most the epoch in progress and the one whose checkpoint was being written are trained again.
    assert after == list(range(after[0], epochs + 1))
    assert len(before) - 1 <= after[0] <= len(before) + 1
    assert all([epoch for epoch, _ in trained[other]] == list(range(1, epochs + 1)) for other in set(trained) - {x})

    kept = books(swept.spec, record.sweep_id)
    assert Counter(run.data.tags["raymlops.trial"] for run in kept.children) == {"0": 1, "1": 1, "2": 1}
    assert all(steps == list(range(1, epochs + 1)) for steps in kept.steps.values())
    for trial in record.trials:
        assert (trial.epochs, trial.value) == (epochs, score_of(trial.params["recipe.config.x"], epochs))
