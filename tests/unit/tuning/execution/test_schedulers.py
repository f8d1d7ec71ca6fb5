"""Which trials are stopped, new ones and ones that go on."""

from __future__ import annotations

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
from optuna.trial import TrialState, create_trial
from spread import at_most, spread

from raymlops.config.load import load_data
from raymlops.tuning.execution.schedulers import Judged, judged, scheduler_of
from raymlops.tuning.study.records import Report, report_key


def spec(train=None, **sweep):
    return load_data(
        {
            "project": {"name": "p"},
            "recipe": {"import": "tiny:Tiny"},
            "train": {"epochs": 9, "metric": "validation/loss", "mode": "min", **(train or {})},
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


def kept(*reports):
    """Return reports (number, epoch, value) in their order."""
    return [Judged(number, float(epoch), value, order) for order, (number, epoch, value) in enumerate(reports)]


def test_what_was_reported_before_a_resume_counts_as_before():
    values = {0: [0.5, 0.4], 1: [0.45]}
    whole, resumed = scheduler_of(spec()), scheduler_of(spec())
    for number, reported in values.items():
        told(whole, number, *reported)
    resumed.replay(kept((0, 1, 0.5), (0, 2, 0.4), (1, 1, 0.45)), trials=[0, 1])
    assert told(whole, 2, 0.48) == told(resumed, 2, 0.48) == ["STOP"]


def test_a_trial_that_had_passed_a_rung_is_not_stopped_by_those_that_came_later():
    """Trial 2 came first; then trials 0 and 1 reported better values, of later epochs and rungs too."""
    scheduler = scheduler_of(spec())
    reports = kept((2, 1, 0.5), (0, 1, 0.1), (1, 1, 0.2), (0, 2, 0.1), (0, 3, 0.1))
    assert scheduler.replay(reports, trials=[0, 1, 2]) == set()
    assert scheduler.on_trial_result(None, trial(2), {"resource": 2, "value": 0.5}) == "CONTINUE"


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_stop_that_nobody_was_told_of_is_made_again(kind):
    """The driver died between the report and the end; the trial may even report once more."""
    scheduler = scheduler_of(spec(scheduler=kind))
    reports = kept(*[(number, epoch, 0.1) for number in range(4) for epoch in (1, 2)], (4, 1, 0.9), (4, 2, 0.9))
    reports.pop(-1 if kind == "asha" else -2)
    assert scheduler.replay(reports, trials=range(5)) == {4}
    assert scheduler.on_trial_result(None, trial(4), {"resource": 3, "value": 0.9}) == "STOP"


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_trial_that_reported_once_more_before_its_stop_stays_stopped(kind):
    """The driver died twice: before the trial was stopped, and after its next report."""
    scheduler = scheduler_of(spec(scheduler=kind, grace_period=1))
    reports = kept(*[(number, 1, 0.1) for number in range(4)], (4, 1, 0.9), (4, 2, 0.9))
    assert scheduler.replay(reports, trials=range(5)) == {4}
    assert scheduler.on_trial_result(None, trial(4), {"resource": 3, "value": 0.0}) == "STOP"


def test_a_trial_of_a_sweep_that_kept_no_order_is_judged_by_what_it_reports_next():
    """It went on where the median would have stopped it."""
    others = [Judged(number, epoch, 0.1, None) for number in range(4) for epoch in (1.0, 2.0, 3.0)]
    reports = [*others, Judged(4, 1.0, 0.9, None), Judged(4, 2.0, 0.9, None)]
    for value, decision in {0.9: "STOP", 0.0: "CONTINUE"}.items():
        scheduler = scheduler_of(spec(scheduler="median", grace_period=1))
        assert scheduler.replay(reports, trials=range(5)) == set()
        assert scheduler.on_trial_result(None, trial(4), {"resource": 3, "value": value}) == decision


@pytest.mark.parametrize("kind", ["asha", "hyperband"])
def test_of_a_sweep_that_kept_no_order_no_trial_is_stopped_by_its_resume(kind):
    """By number, late values of trial 0 would judge the first ones of trial 1."""
    scheduler = scheduler_of(spec(scheduler=kind))
    reports = [Judged(0, float(epoch), 0.1, None) for epoch in range(1, 9)] + [Judged(1, 1.0, 0.5, None)]
    assert scheduler.replay(reports, trials=[0, 1]) == set()


def test_the_last_report_of_a_trial_that_ended_by_itself_is_not_judged():
    """Tune asks about no result that says that it is the last; such a report has no order."""
    entries = {1: Report({}, 0), 2: Report({}, 1), 3: Report({})}
    attrs = {report_key(epoch): report.to_dict() for epoch, report in entries.items()}
    values = {1: 0.5, 2: 0.4, 3: 0.3}
    ended = create_trial(state=TrialState.COMPLETE, value=0.3, intermediate_values=values, system_attrs=attrs)
    assert [(one.resource, one.order) for one in judged(spec(), [ended])] == [(1.0, 0), (2.0, 1)]
    old = create_trial(state=TrialState.COMPLETE, value=0.3, intermediate_values=values)
    assert [one.resource for one in judged(spec(), [old])] == [1.0, 2.0]


EPOCHS, TRIALS, SLOTS = 27, 40, 6


class Race:
    """Trials of several paces under a scheduler, in simulated time; a driver that is killed leaves what was written."""

    def __init__(self, seed):
        rng = random.Random(seed)
        self.level = [rng.uniform(0.1, 1) for _ in range(TRIALS)]
        self.slope = [rng.uniform(0.3, 1.5) for _ in range(TRIALS)]
        self.pace = [rng.uniform(0.5, 2) for _ in range(TRIALS)]
        self.reports, self.states = [], {}
        self.running, self.begun, self.now = {}, 0, 0.0

    def value(self, number, epoch):
        return self.level[number] + self.slope[number] / epoch

    def run(self, scheduler, *, until=math.inf):
        """Run until a moment; return whether all trials have ended by then."""
        while True:
            while len(self.running) < SLOTS and self.begun < TRIALS:
                scheduler.on_trial_add(None, trial(self.begun))
                self.running[self.begun] = (self.now + self.pace[self.begun], 1)
                self.begun += 1
            if not self.running:
                return True
            number, (now, epoch) = min(self.running.items(), key=lambda item: item[1])
            if now > until:
                return False
            self.now = now
            if epoch == EPOCHS:
                self.states[number] = "complete"
                del self.running[number]
                continue
            value = self.value(number, epoch)
            self.reports.append(Judged(number, float(epoch), value, len(self.reports)))
            if scheduler.on_trial_result(None, trial(number), {"resource": epoch, "value": value}) == "STOP":
                self.states[number] = "pruned"
                del self.running[number]
            else:
                self.running[number] = (self.now + self.pace[number], epoch + 1)


@at_most(6)
@pytest.mark.parametrize("kind", ["asha", "hyperband", "median"])
def test_a_resumed_scheduler_decides_as_one_that_was_not_killed(kind, most):
    """A kill at a random moment in each of some sweeps, often twice; open trials report an epoch again."""
    section = {"scheduler": kind, "grace_period": 1}
    stopped = resumes = 0
    seeds = spread(range(40), most)
    for seed in seeds:
        moments = random.Random(seed)
        whole, killed = Race(seed), Race(seed)
        scheduler = scheduler_of(spec(train={"epochs": EPOCHS}, **section))
        whole.run(scheduler)
        scheduler = scheduler_of(spec(train={"epochs": EPOCHS}, **section))
        at = moments.uniform(2, 40)
        while not killed.run(scheduler, until=at):
            resumes += 1
            scheduler = scheduler_of(spec(train={"epochs": EPOCHS}, **section))
            stopped += len(scheduler.replay(killed.reports, trials=range(killed.begun)) & killed.running.keys())
            for number, (_, epoch) in killed.running.items():
                if epoch > 1:  # its checkpoint is an epoch old
                    again = {"resource": epoch - 1, "value": killed.value(number, epoch - 1)}
                    assert scheduler.on_trial_result(None, trial(number), again) == "CONTINUE"
            at += moments.uniform(2, 40)
        assert killed.states == whole.states, seed
        assert len(killed.states) == TRIALS
        assert killed.reports == whole.reports
    assert stopped == 0
    assert resumes >= len(seeds)


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


def test_reports_are_read_by_the_resource_in_the_order_in_which_they_were_judged():
    def running(*reports):
        entries = {report_key(epoch): Report({"step": step}, order).to_dict() for epoch, step, order in reports}
        values = {epoch: 0.5 / epoch for epoch, *_ in reports}
        return create_trial(state=TrialState.RUNNING, intermediate_values=values, system_attrs=entries)

    trials = [running((1, 10.0, 0), (2, 20.0, 3)), running((1, 11.0, 1), (2, 21.0, 2))]
    for number, one in enumerate(trials):
        one.number = number
    found = judged(spec(), trials)
    assert [(one.number, one.resource, one.value) for one in found] == [
        (0, 1.0, 0.5), (1, 1.0, 0.5), (1, 2.0, 0.25), (0, 2.0, 0.25),
    ]  # fmt: skip
    by_step = spec(resource="step", max_resource=100.0)
    assert [one.resource for one in judged(by_step, trials)] == [10.0, 11.0, 21.0, 20.0]
