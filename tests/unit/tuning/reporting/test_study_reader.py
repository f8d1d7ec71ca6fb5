"""A sweep that another process runs, as its study shows it."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from recorded_sweep import project_in, recorded_sweep
from staged_sweep import Stage

from raymlops.errors import NotFoundError, SweepError
from raymlops.records import Objective, TrialRecord
from raymlops.training.runs.lookup import look_up
from raymlops.tuning.reporting.study_reader import OpenStudy, OpenView, Snapshot, frame, open_study
from raymlops.tuning.study.reruns import add_repeats
from raymlops.tuning.study.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from recorded_sweep import RecordedSweep

LOSS = (Objective("loss", "min"),)
NOON = datetime(2026, 11, 25, 12, 0, 0)  # noqa: DTZ001 - Optuna's times have no zone


@pytest.fixture
def sweep(storage_path: Path) -> Iterator[RecordedSweep]:
    """A sweep of four trials, of which none has begun."""
    with recorded_sweep(project_in(storage_path)) as made:
        yield made


def test_an_open_study_shows_what_happens_in_it(sweep: RecordedSweep) -> None:
    """Another process sees trials begin, get on and end."""
    with open_study(look_up(sweep.tracker, sweep.sweep_id)) as study:
        assert study.snapshot() == Snapshot()
        number = sweep.report(0.5)
        (view,) = study.snapshot().open
        assert (view.number, view.state, view.epoch, view.value) == (number, "running", 1, 0.5)
        sweep.trials.tell(number, "complete")
        sweep.trials.flush()
        snapshot = study.snapshot()
        assert snapshot.open == ()
        assert snapshot.best is not None
        assert snapshot.best.number == number


def test_a_study_without_a_usable_trial_has_no_best(sweep: RecordedSweep) -> None:
    """And says why."""
    sweep.run(0.5, "failed", reason="broke")
    with open_study(look_up(sweep.tracker, sweep.sweep_id)) as study:
        snapshot = study.snapshot()
        assert snapshot.best is None
        with pytest.raises(SweepError, match="broke"):
            study.best()


def test_a_study_that_is_gone_is_not_found(sweep: RecordedSweep) -> None:
    """Nothing is made in its place."""
    sweep.parent.tag({"raymlops.study": "another"})
    with (
        pytest.raises(NotFoundError, match="there is no study another"),
        open_study(look_up(sweep.tracker, sweep.sweep_id)),
    ):
        pass


def test_a_study_of_another_machine_is_not_found(sweep: RecordedSweep, tmp_path: Path) -> None:
    """Its storage.path is not here, and is not created."""
    recorded = replace(look_up(sweep.tracker, sweep.sweep_id), spec=project_in(tmp_path / "elsewhere").spec)
    with pytest.raises(NotFoundError, match=r"elsewhere/optuna\.db does not exist") as raised, open_study(recorded):
        pass
    assert "storage.path differ from those that its sweep started with" in str(raised.value.hint)
    assert not (tmp_path / "elsewhere").exists()


def trial(number: int, value: float | None, **fields) -> TrialRecord:
    status = "failed" if value is None else "complete"
    return TrialRecord(number, {"train.lr": 0.01}, status, value, epochs=2, duration_s=3.0, **fields)


def test_a_display_shows_the_best_and_those_that_run() -> None:
    """A carried trial is known and not counted; it is no row of the table, even if it is the best."""
    running = OpenView(1, {"train.lr": 0.1}, "running", 1, 0.7)
    snapshot = Snapshot((trial(0, 0.5), trial(2, None)), (running,), trial(0, 0.5))
    assert [(view.number, view.state) for view in snapshot.board().rows()] == [
        (0, "complete"),
        (1, "running"),
        (2, "failed"),
    ]
    carried = trial(0, 0.1, carried_from="other/3")
    snapshot = Snapshot((carried, trial(1, 0.5)), (), carried)
    assert [view.number for view in snapshot.board().rows()] == [1]
    assert (snapshot.carried, snapshot.board().counts["complete"]) == (1, 1)


def test_a_display_shows_the_mean_of_what_was_trained_again_as_its_driver_does(storage_path: Path) -> None:
    """Repeats are counted there."""
    with open_storage(f"sqlite:///{storage_path}/optuna.db") as storage:
        stage = Stage(storage, num_trials=2, repeats={"top": 1, "seeds": 3})
        for value in (0.5, 0.8):
            stage.run("complete", value)
        stage.controller.close()
        add_repeats(stage.study, spec=stage.spec)
        stage.controller.repeat(stage.trials.reopen(repeats=True))
        stage.run("complete", 0.6)
        stage.trials.flush()
        snapshot = OpenStudy(stage.study, spec=stage.spec, storage="").snapshot()
        board, event = snapshot.board(), stage.events[-1]
    assert (board.best, board.ended) == (event.best, event.ended)
    assert (event.best.number, event.best.value) == (1, pytest.approx(0.7))
    assert (event.total, snapshot.num_repeats) == (4, 2)


def test_repeats_are_those_to_run_once_there_is_one() -> None:
    """Also while some have not been added yet."""
    assert Snapshot((trial(0, 0.5), trial(1, 0.4, repeat_of=0)), (), None, repeats_left=2).num_repeats == 3
    assert Snapshot((trial(0, 0.5),), (), None, repeats_left=2).num_repeats == 0


def test_a_frame_has_a_row_for_each_trial() -> None:
    """By number, those that run too; a parameter that a trial lacks is empty."""
    view = OpenView(1, {"train.momentum": 0.9}, "running", 1, 0.7, started=NOON - timedelta(seconds=5))
    ended = (trial(2, None, reason="broke"), trial(0, 0.5, run_id="r0"))
    built = frame(Snapshot(ended, (view,)), objectives=LOSS, now=NOON)
    assert list(built.columns) == [
        *("number", "status", "value", "train.lr", "train.momentum", "epochs", "duration_s", "reason", "run_id")
    ]
    assert list(built["number"]) == [0, 1, 2]
    assert list(built["status"]) == ["complete", "running", "failed"]
    assert list(built["value"])[:2] == [0.5, 0.7]
    assert math.isnan(built["value"][2])
    assert list(built["duration_s"]) == [3.0, 5.0, 3.0]
    assert math.isnan(built["train.momentum"][0])
    assert (built["reason"][2], built["run_id"][0]) == ("broke", "r0")


def test_a_frame_of_several_objectives_has_a_column_for_each() -> None:
    """Named by metric."""
    both = (*LOSS, Objective("size", "max"))
    built = frame(Snapshot((trial(0, 0.5, values=(0.5, 7.0)),)), objectives=both, now=NOON)
    assert built[["loss", "size"]].to_numpy().tolist() == [[0.5, 7.0]]
    assert "value" not in built


def test_a_frame_without_trials_has_its_columns() -> None:
    """So that what is done with it next does not fail."""
    assert list(frame(Snapshot(), objectives=LOSS, now=NOON).columns)[:3] == ["number", "status", "value"]
