"""The course of a sweep that trains its best configurations again, event by event, without Ray."""

from __future__ import annotations

import json
import random

import pytest
from optuna.trial import TrialState
from simulated_sweep import Cluster, run, simulated
from staged_sweep import Stage

from raymlops.tuning.study.ranking import ranking
from raymlops.tuning.study.reruns import add_repeats
from raymlops.tuning.study.selection import winner
from raymlops.tuning.study.storage import create_study, open_storage

REPEATS = {"top": 2, "seeds": 3}


class KilledError(Exception):
    """The driver is gone."""


@pytest.fixture
def storage(tmp_path):
    with open_storage(f"sqlite:///{tmp_path}/optuna.db") as opened:
        yield opened


def value_of(config):
    """The simulated training: its value follows from the rate and the seed."""
    train = json.loads(config["project"])["train"]
    return train["lr"] + random.Random(train["seed"]).gauss(0.0, 0.05)


def drive(stage, *, events=10**9, fails=lambda _config: False):
    """Run a sweep as its driver does, for so many events; then the driver is killed."""
    left = iter(range(events))

    def happen():
        if next(left, None) is None:
            raise KilledError

    def run():
        while (config := stage.controller.next_trial()) is not None:
            happen()
            if fails(config):
                stage.controller.end(config["number"], "failed", reason="ValueError: x")
                continue
            stage.epoch(config["number"], 1, value_of(config))
            happen()
            stage.controller.end(config["number"], "complete")
            happen()

    for opened in stage.trials.reopen():
        stage.controller.requeue(opened)
    run()
    if stage.controller.halt in {None, "good enough"}:
        stage.controller.close()
        add_repeats(stage.study, spec=stage.spec)
        happen()
        if repeats := stage.trials.reopen(repeats=True):
            stage.controller.repeat(repeats)
            run()
            stage.controller.close()


def outcome(stage):
    """What must not depend on where a driver died."""
    return [
        (trial.number, trial.state, trial.values, trial.params, trial.user_attrs.get("raymlops:seed"))
        for trial in stage.study.get_trials()
    ]


def test_the_best_are_trained_again_once_the_search_has_ended(storage):
    stage = Stage(storage, num_trials=4, repeats=REPEATS)
    drive(stage)
    records = stage.trials.records
    assert [record.repeat_of is None for record in records] == [True] * 4 + [False] * 4
    best = sorted(records[:4], key=lambda record: -record.value)[:2]
    assert [record.repeat_of for record in records[4:]] == [trial.number for trial in best] * 2
    first = ranking(records, objectives=stage.trials.objectives)[0]
    assert winner(records, objectives=stage.trials.objectives).number in first.trials
    event = stage.events[-1]
    assert (event.ended, event.total) == (8, 8)
    assert (event.best.number, event.best.value) == (first.number, first.mean)
    assert stage.runs.repeats == {record.number: record.repeat_of for record in records[4:]}


def test_a_target_that_is_reached_ends_the_search_and_not_its_repeats(storage):
    """What still runs waits; the repeats neither count for patience nor reach a target."""
    stage = Stage(storage, num_trials=9, max_concurrent=None, target=0.0, repeats={"top": 1, "seeds": 3})
    stage.slots = 4
    for stage.now in (2.0, 4.0):
        stage.controller.tick()
    for _ in range(4):
        stage.controller.next_trial()
    stage.controller.process_died(0, None)
    stage.epoch(1, 1, 0.9)
    stage.controller.end(1, "complete")
    assert stage.controller.halt == "good enough"
    stage.controller.end(2, "failed", reason="x")
    stage.controller.close()
    add_repeats(stage.study, spec=stage.spec)
    stage.controller.repeat(stage.trials.reopen(repeats=True))
    for number, value in ((4, 0.95), (5, 0.96)):
        assert stage.controller.next_trial()["number"] == number
        stage.epoch(number, 1, value)
        stage.controller.end(number, "complete")
    assert (stage.controller.next_trial(), stage.controller.done) == (None, True)
    stage.controller.close()
    assert stage.controller.stopped.startswith("reached its target")
    assert [stage.study.get_trials()[number].state for number in (0, 2, 3)] == [TrialState.WAITING] * 3
    assert not stage.controller.all_ended


def test_a_used_up_budget_ends_the_repeats_too_and_they_go_on(storage):
    stage = Stage(storage, num_trials=2, timeout_s=60.0, repeats=REPEATS)
    for _ in range(2):
        config = stage.controller.next_trial()
        stage.epoch(config["number"], 1, value_of(config))
        stage.controller.end(config["number"], "complete")
    stage.controller.close()
    add_repeats(stage.study, spec=stage.spec)
    stage.controller.repeat(stage.trials.reopen(repeats=True))
    stage.controller.next_trial()
    stage.now = 61.0
    assert stage.controller.halting
    stage.controller.close()
    assert stage.controller.stopped == "reached its timeout_s of 60 s"
    assert stage.states()[2:] == [TrialState.WAITING] * 4
    again = Stage(storage, study=stage.study, num_trials=2, repeats=REPEATS)
    drive(again)
    assert len(again.trials.records) == 6


@pytest.mark.parametrize("reason", ["one", "all"])
def test_repeats_that_fail_lose_no_winner(storage, reason):
    """One that fails leaves the others; where each one does, the search's own value decides."""
    stage = Stage(storage, num_trials=4, repeats=REPEATS)

    def fails(config):
        return config["number"] == 4 if reason == "one" else config["number"] > 3

    drive(stage, fails=fails)
    records, objectives = stage.trials.records, stage.trials.objectives
    ranked = ranking(records, objectives=objectives)
    assert sum(each.failed for each in ranked) == (1 if reason == "one" else 4)
    best = winner(records, objectives=objectives)
    if reason == "all":
        assert best == max(records[:4], key=lambda record: record.value)
    else:
        assert best.number in ranked[0].trials


def test_repeats_that_fail_in_a_row_for_one_reason_halt_and_wait(storage):
    stage = Stage(storage, num_trials=2, max_failures=3, repeats=REPEATS)
    drive(stage, fails=lambda config: config["number"] > 1)
    assert stage.controller.halt == "broken"
    assert stage.states()[2:] == [TrialState.WAITING] * 4
    again = Stage(storage, study=stage.study, num_trials=2, max_failures=3, repeats=REPEATS)
    drive(again)
    assert again.states() == [TrialState.COMPLETE] * 6


def test_a_driver_that_is_killed_at_any_moment_leaves_the_same_sweep(storage):
    """Two events further each time; each sweep is resumed until it has ended."""
    section = {"num_trials": 3, "max_concurrent": 1, "repeats": REPEATS}
    whole = Stage(storage, **section)
    drive(whole)
    for killed in range(0, 3 * (3 + 4) + 1, 2):
        study = create_study(storage, f"killed-{killed}", objectives=whole.trials.objectives)
        with pytest.raises(KilledError):
            drive(Stage(storage, study=study, **section), events=killed)
        again = Stage(storage, study=study, **section)
        drive(again)
        assert outcome(again) == outcome(whole)


def test_tune_runs_the_repeats_after_the_search(tmp_path):
    """Its controller over processes that only take their time: each trial once, and no more."""
    with simulated(tmp_path, Cluster(2)) as make:
        sweep = make(num_trials=3, repeats=REPEATS)
        assert run(sweep)
        assert sweep.ended == 3
        sweep.repeat()
        assert run(sweep)
        sweep.controller.close()
        assert [record.repeat_of for record in sweep.trials.records] == [None] * 3 + [0, 1, 0, 1]
        assert {trial.state for trial in sweep.study.get_trials()} == {TrialState.COMPLETE}
        assert (sweep.events[-1].ended, sweep.events[-1].total) == (7, 7)
        assert sweep.processes.peak == 2
