"""How a sweep is doing: from what MLflow, the lease and the study say to one record."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from recorded_sweep import project_in, recorded_sweep

from raymlops.records import SpentRecord
from raymlops.state.database import state_url
from raymlops.state.lease import lease
from raymlops.training.runs.lookup import look_up
from raymlops.training.runs.status import why_ended
from raymlops.tuning.reporting.status import sweep_status
from raymlops.tuning.study.reruns import add_repeats
from raymlops.tuning.study.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from recorded_sweep import RecordedSweep

    from raymlops.tuning.reporting.status import SweepStatus


@pytest.fixture
def sweep(storage_path: Path) -> Iterator[RecordedSweep]:
    """A sweep of four trials, of which none has begun."""
    with recorded_sweep(project_in(storage_path)) as made:
        yield made


class Clock:
    """A time that stands until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def now(sweep: RecordedSweep) -> SweepStatus:
    return sweep_status(sweep.tracker, look_up(sweep.tracker, sweep.sweep_id))


def test_a_sweep_that_runs_counts_its_trials_and_names_its_driver(sweep: RecordedSweep) -> None:
    """Ended and open ones, the best so far, and that resuming is refused."""
    sweep.run(0.5)
    best = sweep.run(0.25)
    sweep.run(0.9, "failed", reason="broke")
    sweep.report(0.1)
    with lease(state_url(sweep.project.spec), sweep.sweep_id, purpose="sweeping"):
        status = now(sweep)
    assert (status.state, status.ended, status.num_trials) == ("running", 3, 4)
    assert status.trials == {"running": 1, "waiting": 0, "complete": 2, "pruned": 0, "failed": 1}
    assert status.best is not None
    assert (status.best.number, status.best.value) == (best, 0.25)
    assert status.holder is not None
    assert "sweeping" in status.holder
    assert status.resume == f"refused while {status.holder} runs it"


def test_a_sweep_whose_driver_died_says_how_it_goes_on(sweep: RecordedSweep) -> None:
    """With what has begun, and what has not."""
    with lease(state_url(sweep.project.spec), sweep.sweep_id, purpose="sweeping"):
        sweep.run(0.5)
        sweep.trials.suspend(sweep.report(0.4))
        sweep.report(0.1)
        sweep.trials.flush()
    status = now(sweep)
    assert (status.state, status.holder) == ("interrupted", None)
    assert status.detail == "MLflow says RUNNING, but no process holds its lease"
    assert status.trials["waiting"] == status.trials["running"] == 1
    assert status.resume == f"resumes 2 started and 1 new trials: raymlops sweep --resume {sweep.sweep_id}"


def test_a_trial_without_a_process_waits(sweep: RecordedSweep) -> None:
    """One that was drawn in advance, and one that a resumed sweep has not started again.

    A start is written with what another trial reports, or alone after a second.
    """
    clock, spec = Clock(), sweep.project.spec

    def counts() -> tuple[int, int]:
        found = now(sweep).trials
        return found["running"], found["waiting"]

    sweep.trials = trials = Trials(sweep.study, section=spec.sweep, objectives=spec.objectives, clock=clock)
    drawn = trials.ask().number
    trials.start(drawn)
    trials.flush()
    assert counts() == (0, 1)
    sweep.report(0.1)
    assert counts() == (2, 0)
    resumed = Trials(sweep.study, section=spec.sweep, objectives=spec.objectives, clock=clock)
    first, _ = resumed.reopen()
    resumed.start(first.number)
    for moment, expected in ((0.9, (0, 2)), (1.0, (1, 1))):
        clock.now = moment
        resumed.flush()
        assert counts() == expected
    assert now(sweep).resume.startswith("resumes 2 started and 2 new trials")


def test_what_another_program_enqueued_is_resumed_as_far_as_there_is_room(sweep: RecordedSweep) -> None:
    """Of four trials one has ended and one is open: two of the three are left, and no new one."""
    sweep.run(0.5)
    sweep.report(0.4)
    for lr in (0.01, 0.02, 0.03):
        sweep.study.enqueue_trial({"train.lr": lr})
    status = now(sweep)
    assert (status.num_trials, status.trials["waiting"]) == (4, 3)
    assert status.resume.startswith("resumes 3 started trials: ")


def test_repeats_are_counted_apart_once_there_are_any(storage_path: Path) -> None:
    """While they run the search has ended, and nothing else says that the sweep goes on."""
    with recorded_sweep(project_in(storage_path, num_trials=2, repeats={"top": 1, "seeds": 4})) as sweep:
        for value in (0.5, 0.4):
            sweep.run(value)
        assert now(sweep).summary()["trials"] == "2 of 2 ended: 2 complete"
        add_repeats(sweep.study, spec=sweep.project.spec)
        first, *_ = sweep.trials.reopen(repeats=True)
        sweep.trials.tell(first.number, "failed", reason="broke")
        sweep.trials.flush()
        status = now(sweep)
    assert status.summary()["trials"] == "2 of 2 ended: 2 complete; 1 of 3 repeats ended"
    assert (status.ended, status.repeats_ended, status.num_repeats) == (2, 1, 3)


def test_a_finished_sweep_can_only_be_extended(sweep: RecordedSweep) -> None:
    """And says where its report and its best configuration are."""
    for value in (0.5, 0.4, 0.3, 0.2):
        sweep.run(value)
    sweep.parent.end("FINISHED", {"raymlops.report": "/s/report.html", "raymlops.best_config": "/s/best.yaml"})
    status = now(sweep)
    assert (status.state, status.report, status.best_config) == ("finished", "/s/report.html", "/s/best.yaml")
    command = f"raymlops sweep --resume {sweep.sweep_id}"
    assert (
        status.resume == f"nothing left to do: it has ended all 4 trials; to continue: {command} --extend num_trials=+4"
    )


def test_a_budget_that_is_used_up_is_named_with_what_extends_it(storage_path: Path) -> None:
    """The trials that are left need more of it."""
    with recorded_sweep(project_in(storage_path, timeout_s=60.0)) as sweep:
        sweep.run(0.5)
        spent = json.dumps(SpentRecord(wall_s=61.0, cpu_hours=0.5).to_dict())
        sweep.parent.end("FINISHED", {"raymlops.stopped": "reached its timeout_s of 60 s", "raymlops.spent": spent})
        status = now(sweep)
    assert (status.stopped, status.spent.wall_s) == ("reached its timeout_s of 60 s", 61.0)
    command = f"raymlops sweep --resume {sweep.sweep_id}"
    assert status.resume == (
        "nothing left to do: it reached its timeout_s of 60 s; to continue with 3 new trials: "
        f"{command} --extend timeout_s=+60"
    )


def test_trials_that_a_budget_cut_go_on_when_it_is_extended(storage_path: Path) -> None:
    """They were put back, and are begun."""
    with recorded_sweep(project_in(storage_path, max_cpu_hours=0.25)) as sweep:
        sweep.run(0.5)
        sweep.trials.suspend(sweep.report(0.4))
        sweep.trials.flush()
        sweep.parent.end("FINISHED", {"raymlops.spent": json.dumps(SpentRecord(cpu_hours=0.26).to_dict())})
        resume = now(sweep).resume
    assert resume.startswith("nothing left to do: it reached its max_cpu_hours of 0.25 CPU-hours; to continue with ")
    assert " with 1 started and 2 new trials: " in resume
    assert resume.endswith(" --extend max_cpu_hours=+0.25")


def test_a_budget_that_all_trials_used_up_is_extended_with_them(storage_path: Path) -> None:
    """Either alone would leave nothing to do."""
    with recorded_sweep(project_in(storage_path, num_trials=1, timeout_s=60.0)) as sweep:
        sweep.run(0.5)
        sweep.parent.end("FINISHED", {"raymlops.spent": json.dumps(SpentRecord(wall_s=61.0).to_dict())})
        resume = now(sweep).resume
    assert resume.startswith(
        "nothing left to do: it has ended all 1 trials and reached its timeout_s of 60 s; to continue: "
    )
    assert resume.endswith(" --extend num_trials=+1 --extend timeout_s=+60")


def test_a_failed_sweep_whose_budget_is_used_up_needs_more_of_it_too(storage_path: Path) -> None:
    """It would end again at once."""
    with recorded_sweep(project_in(storage_path, timeout_s=60.0)) as sweep:
        sweep.run(0.9, "failed", reason="RecipeError: no")
        sweep.parent.end("FAILED", {"raymlops.spent": json.dumps(SpentRecord(wall_s=61.0).to_dict())})
        resume = now(sweep).resume
    assert "to continue with 3 new trials: " in resume
    assert resume.endswith(" --extend timeout_s=+60")


@pytest.mark.parametrize(
    ("field", "stopped"),
    [
        ({"target": 0.6}, "reached its target of 0.6 with 0.5"),
        ({"patience": 1}, "found nothing better in 1 trials (patience 1)"),
    ],
)
def test_a_sweep_that_was_good_enough_says_so(storage_path: Path, field: dict[str, float], stopped: str) -> None:
    """And which field decides that."""
    with recorded_sweep(project_in(storage_path, **field)) as sweep:
        sweep.run(0.5)
        sweep.run(0.7)
        sweep.parent.end("FINISHED", {"raymlops.stopped": stopped})
        resume = now(sweep).resume
    command = f"raymlops sweep --resume {sweep.sweep_id} sweep.{next(iter(field))}=VALUE"
    assert resume == f"nothing left to do: it {stopped}; to continue with 2 new trials: {command}"


@pytest.mark.parametrize("num_trials", [2, 9])
@pytest.mark.parametrize("refused", [0, 1])
def test_an_exhausted_grid_is_only_forked(storage_path: Path, num_trials: int, refused: int) -> None:
    """More trials than points there never are, also where just as many were asked for, or the recipe rejects some."""
    grid = {"sampler": "grid", "space": {"train.lr": {"categorical": [0.1, 0.2]}}, "num_trials": num_trials}
    with recorded_sweep(project_in(storage_path, **grid)) as sweep:
        sweep.run(0.5)
        if refused:
            sweep.trials.refuse(sweep.report(0.4), "no")
            sweep.trials.flush()
        else:
            sweep.run(0.4)
        sweep.parent.end("FINISHED", {})
        status = now(sweep)
    assert status.num_trials == 2 - refused
    assert status.resume == (
        "nothing left to do: it has tried all 2 points of its grid; to continue: "
        f"raymlops sweep --fork {status.sweep_id} --config FILE, with a finer grid"
    )


def test_why_trials_failed_is_told(sweep: RecordedSweep) -> None:
    """Grouped, below the counts."""
    sweep.run(0.9, "failed", reason="RecipeError: no")
    sweep.run(0.9, "failed", reason="RecipeError: no")
    status = now(sweep)
    assert status.failures == ("2 x RecipeError: no  (trial 0, 1)",)
    assert status.summary()["failures"] == "2 x RecipeError: no  (trial 0, 1)"


def test_why_a_sweep_ended_is_told(sweep: RecordedSweep) -> None:
    """As its run has it, a signal in words."""
    sweep.parent.end("FAILED", {"raymlops.reason": "SweepError: none of 4 trials gave a usable value"})
    assert now(sweep).detail == "SweepError: none of 4 trials gave a usable value"
    recorded = look_up(sweep.tracker, sweep.sweep_id)
    assert why_ended(replace(recorded, tags={"raymlops.reason": "KeyboardInterrupt: "})) == "stopped by a signal"


def test_a_study_that_cannot_be_read_leaves_what_mlflow_says(sweep: RecordedSweep, storage_path: Path) -> None:
    """The problem is told beside it."""
    sweep.parent.end("FINISHED", {"raymlops.study": "another"})
    status = now(sweep)
    assert status.state == "finished"
    assert "its trials cannot be read: there is no study another" in status.detail
    assert status.resume.startswith("unknown: ")


def test_a_sweep_is_told_in_lines(sweep: RecordedSweep) -> None:
    """One a question; what is not known is left out."""
    number = sweep.run(0.25)
    sweep.parent.tag({"raymlops.spent": json.dumps(SpentRecord(wall_s=65.0, cpu_hours=0.04).to_dict())})
    with lease(state_url(sweep.project.spec), sweep.sweep_id, purpose="sweeping"):
        pass
    told = {name: text for name, text in now(sweep).summary().items() if text}
    assert list(told) == ["sweep", "state", "trials", "best", "spent", "resume"]
    assert told["trials"] == "1 of 4 ended: 1 complete"
    assert told["best"].startswith(f"trial {number}: validation/loss 0.25 after 1 epochs with train.lr=")
    assert told["spent"] == "1:05, 0.04 CPU-hours"
