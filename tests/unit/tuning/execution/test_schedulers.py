"""Which trials are stopped, new ones and ones that go on."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from raymlops.config.load import load_data
from raymlops.tuning.execution.schedulers import reports, scheduler_of


def spec(**sweep):
    return load_data(
        {
            "project": {"name": "p"},
            "recipe": {"import": "tiny:Tiny"},
            "train": {"epochs": 9, "metric": "validation/loss", "mode": "min"},
            "sweep": sweep,
        }
    ).spec


def trial(number, trial_id="x"):
    return SimpleNamespace(config={"number": number}, trial_id=trial_id)


def told(scheduler, number, *values, trial_id="x"):
    """Return what becomes of a trial after each of its epochs."""
    scheduler.on_trial_add(None, trial(number, trial_id))
    return [
        scheduler.on_trial_result(None, trial(number, trial_id), {"resource": epoch, "value": value})
        for epoch, value in enumerate(values, start=1)
    ]


def test_asha_stops_a_trial_that_is_not_among_the_best_third():
    scheduler = scheduler_of(spec(scheduler="asha"))
    for number in range(3):
        assert told(scheduler, number, 0.1 + number / 100)[-1] == ("CONTINUE" if number == 0 else "STOP")


def test_what_was_reported_before_a_resume_counts_as_before():
    values = {0: [0.5, 0.4], 1: [0.45]}
    whole, resumed = scheduler_of(spec()), scheduler_of(spec())
    for number, reported in values.items():
        told(whole, number, *reported)
        resumed.replay(number, enumerate(reported, start=1), complete=False)
    assert told(whole, 2, 0.48) == told(resumed, 2, 0.48) == ["STOP"]


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_stop_that_nobody_was_told_of_is_made_again(kind):
    """The driver died between the report and the end; the trial has even reported once more."""
    scheduler = scheduler_of(spec(scheduler=kind))
    for number in range(4):
        scheduler.replay(number, [(1.0, 0.1), (2.0, 0.1)], complete=True)
    assert scheduler.replay(4, [(1.0, 0.9), (2.0, 0.9)], complete=False)
    assert scheduler.on_trial_result(None, trial(4), {"resource": 3, "value": 0.9}) == "STOP"


def test_the_last_report_of_a_trial_that_ended_by_itself_is_not_judged():
    """Tune asks about no result that says that it is the last."""
    scheduler = scheduler_of(spec(scheduler="median"))
    scheduler.replay(0, [(1.0, 0.5), (2.0, 0.4)], complete=True)
    (results,) = scheduler._scheduler._results.values()
    assert [result["resource"] for result in results] == [1.0]


def test_epochs_that_a_checkpoint_brought_back_are_judged_in_their_rungs():
    scheduler = scheduler_of(spec())
    scheduler.on_trial_add(None, trial(0))
    back = json.dumps([{"epoch": epoch, "best": epoch, "value": 0.5 / epoch, "metrics": {}} for epoch in (1, 2, 3)])
    assert scheduler.on_trial_result(None, trial(0), {"resource": 4, "value": 0.1, "restored": back}) == "CONTINUE"
    rungs = {milestone: recorded for milestone, recorded in scheduler._scheduler._brackets[0]._rungs if recorded}
    assert rungs == {1: {"0": -0.5}, 3: {"0": pytest.approx(-0.5 / 3)}}


def test_a_trial_that_leaps_over_rungs_is_judged_at_the_highest_alone():
    """Steps come in bounds of an epoch."""
    scheduler = scheduler_of(spec(resource="step", max_resource=250.0))
    told_steps = []
    scheduler.on_trial_add(None, trial(0))
    for step in (50, 100, 150, 200, 250):
        scheduler.on_trial_result(None, trial(0), {"resource": step, "value": 0.5})
        told_steps.append([milestone for milestone, recorded in scheduler._scheduler._brackets[0]._rungs if recorded])
    assert told_steps == [[27], [81, 27], [81, 27], [81, 27], [243, 81, 27]]


def test_a_trial_that_goes_on_stands_in_a_rung_once():
    """To Tune it is another trial; were it two here, its own value would stop the ones after it."""
    scheduler = scheduler_of(spec())
    told(scheduler, 0, 0.5, trial_id="a")
    told(scheduler, 0, 0.5, trial_id="b")
    rungs = scheduler._scheduler._brackets[0]._rungs
    assert [list(recorded) for milestone, recorded in rungs if milestone == 1] == [["0"]]


def test_hyperband_has_a_bracket_for_each_number_of_halvings_and_draws_it_from_the_seed():
    """From 1 to 9 by thirds: 9, 3 and 1 epochs before the first rung."""
    scheduler, again = scheduler_of(spec(scheduler="hyperband")), scheduler_of(spec(scheduler="hyperband"))
    assert len(scheduler._scheduler._brackets) == 3
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    drawn = []
    for each in (scheduler, again):
        for number in range(20):
            each.on_trial_add(None, trial(number))
        brackets = each._scheduler._brackets
        drawn.append([brackets.index(each._scheduler._trial_info[str(number)]) for number in range(20)])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_median_stops_a_trial_that_is_worse_than_the_median_and_never_pauses():
    scheduler = scheduler_of(spec(scheduler="median"))
    controller = SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status="PENDING")])
    scheduler.on_trial_add(controller, trial(0))
    assert scheduler.on_trial_result(controller, trial(0), {"resource": 1, "value": 0.3}) == "CONTINUE"
    for number in (1, 2, 3):
        told(scheduler, number, 0.2)
    assert told(scheduler, 4, 0.4) == ["STOP"]
    assert told(scheduler, 5, 0.1) == ["CONTINUE"]


def test_a_trial_that_failed_is_not_compared():
    scheduler = scheduler_of(spec(scheduler="median"))
    told(scheduler, 0, 0.3)
    scheduler.on_trial_complete(None, trial(0), {"value": math.nan, "outcome": "failed"})
    assert told(scheduler, 1, 0.2) == ["CONTINUE"]


@pytest.mark.parametrize("kind", ["asha", "hyperband", "median", "none"])
def test_a_result_without_a_clock_stops_nothing(kind):
    scheduler = scheduler_of(spec(scheduler=kind))
    scheduler.on_trial_add(None, trial(0))
    assert scheduler.on_trial_result(None, trial(0), {"value": 0.1}) == "CONTINUE"


def test_reports_are_read_by_the_resource():
    values, history = {1: 0.5, 2: 0.4}, {1: {"step": 10.0}, 2: {"step": 20.0}}
    assert list(reports(spec(), values, history)) == [(1.0, 0.5), (2.0, 0.4)]
    by_step = spec(resource="step", max_resource=100.0)
    assert list(reports(by_step, values, history)) == [(10.0, 0.5), (20.0, 0.4)]
