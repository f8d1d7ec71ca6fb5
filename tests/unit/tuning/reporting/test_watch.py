"""A sweep that another process runs, as its study shows it."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from recorded_sweep import project_in, recorded_sweep

from raymlops.errors import NotFoundError, SweepError
from raymlops.records import Objective, TrialRecord
from raymlops.training.runs.lookup import look_up
from raymlops.tuning.reporting.watch import OpenView, Standing, Watch, frame, reading

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
    with reading(look_up(sweep.tracker, sweep.sweep_id)) as study:
        assert study.look() == Standing()
        number = sweep.report(0.5)
        (view,) = study.look().open
        assert (view.number, view.state, view.epoch, view.value) == (number, "running", 1, 0.5)
        sweep.trials.tell(number, "complete")
        sweep.trials.flush()
        standing = study.look()
        assert standing.open == ()
        assert standing.best is not None
        assert standing.best.number == number


def test_a_study_without_a_usable_trial_has_no_best(sweep: RecordedSweep) -> None:
    """And says why, when it is asked to choose."""
    sweep.run(0.5, "failed", reason="broke")
    with reading(look_up(sweep.tracker, sweep.sweep_id)) as study:
        standing = study.look()
        assert standing.best is None
        with pytest.raises(SweepError, match="broke"):
            study.choose(standing)


def test_a_study_that_is_gone_is_not_found(sweep: RecordedSweep) -> None:
    """Nothing is made in its place."""
    sweep.parent.tag({"raymlops.study": "another"})
    with (
        pytest.raises(NotFoundError, match="there is no study another"),
        reading(look_up(sweep.tracker, sweep.sweep_id)),
    ):
        pass


def trial(number: int, value: float | None, **fields) -> TrialRecord:
    status = "failed" if value is None else "complete"
    return TrialRecord(number, {"train.lr": 0.01}, status, value, epochs=2, duration_s=3.0, **fields)


def test_events_show_the_best_and_those_that_run(storage_path: Path) -> None:
    """Of four trials one has ended after 30 s: three more take 90."""
    watch = Watch(project_in(storage_path).spec)
    standing = Standing((trial(0, 0.5),), (OpenView(1, {"train.lr": 0.1}, "running", 1, 0.7),), trial(0, 0.5))
    event = watch.event(standing, elapsed_s=30.0)
    assert [(view.number, view.state) for view in event.rows] == [(0, "complete"), (1, "running")]
    assert (event.counts["complete"], event.counts["running"], event.total, event.eta_s) == (1, 1, 4, 90.0)
    assert event.best is not None
    assert event.best.number == 0


def test_events_follow_a_trial_that_ends(storage_path: Path) -> None:
    """It is counted once, however often it is looked at."""
    watch = Watch(project_in(storage_path).spec)
    watch.event(Standing((), (OpenView(0, {}, "running"),)), elapsed_s=1.0)
    standing = Standing((trial(0, None),))
    for _ in range(2):
        event = watch.event(standing, elapsed_s=2.0)
    assert [(view.number, view.state) for view in event.rows] == [(0, "failed")]
    assert event.ended == 1
    assert event.best is None


def test_carried_trials_are_known_and_not_counted(storage_path: Path) -> None:
    """The best may be one of them."""
    carried = trial(0, 0.1, carried_from="other/3")
    standing = Standing((carried, trial(1, 0.5)), (), carried)
    event = Watch(project_in(storage_path).spec).event(standing, elapsed_s=1.0)
    assert (standing.carried, event.ended) == (1, 1)
    assert event.best is not None
    assert event.best.number == 0


def test_a_frame_has_a_row_for_each_trial() -> None:
    """By number, those that run too; a parameter that a trial lacks is empty."""
    view = OpenView(1, {"train.momentum": 0.9}, "running", 1, 0.7, started=NOON - timedelta(seconds=5))
    ended = (trial(2, None, reason="broke"), trial(0, 0.5, run_id="r0"))
    built = frame(Standing(ended, (view,)), objectives=LOSS, now=NOON)
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
    built = frame(Standing((trial(0, 0.5, values=(0.5, 7.0)),)), objectives=both, now=NOON)
    assert built[["loss", "size"]].to_numpy().tolist() == [[0.5, 7.0]]
    assert "value" not in built


def test_a_frame_without_trials_has_its_columns() -> None:
    """So that what is done with it next does not fail."""
    assert list(frame(Standing(), objectives=LOSS, now=NOON).columns)[:3] == ["number", "status", "value"]
