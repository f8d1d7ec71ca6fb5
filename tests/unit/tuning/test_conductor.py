"""The course of a sweep, event by event, without Ray: what the study and the child runs are told."""

from __future__ import annotations

import json

import pytest
from optuna.trial import TrialState
from tiny import Tiny

from raymlops.config.load import load_data
from raymlops.project import bind
from raymlops.tuning.conductor import Conductor
from raymlops.tuning.storage import create_study, open_storage
from raymlops.tuning.trials import Trials


class Runs:
    """Stands for the child runs: remembers what was said of each trial."""

    def __init__(self) -> None:
        self.said = []

    def start(self, number, params):
        self.said.append((number, "start"))

    def log(self, number, *, epoch, metrics):
        self.said.append((number, epoch))

    def end(self, number, status, *, reason=""):
        self.said.append((number, status))

    def kill_parent(self):
        self.said.append(("parent", "killed"))

    def run_id(self, number):
        return f"run-{number}"


class Stage:
    """A conductor with what it conducts."""

    def __init__(self, storage, **sweep) -> None:
        space = {"train.lr": {"float": [0.1, 0.2]}}
        data = {"project": {"name": "p"}, "recipe": {"import": Tiny}, "sweep": {"space": space, **sweep}}
        project = bind(load_data(data))
        self.now = 0.0
        self.events = []
        self.runs = Runs()
        self.study = create_study(storage, "s", sweep=project.spec.sweep, mode="max")
        self.trials = Trials(self.study, space=project.spec.sweep.space)
        self.conductor = Conductor(
            project,
            trials=self.trials,
            children=self.runs,
            metric="validation/auc",
            mode="max",
            max_concurrent=2,
            on_event=self.events.append,
            clock=lambda: self.now,
        )

    def epoch(self, number, epoch, value):
        self.conductor.epoch(number, epoch=epoch, value=value, metrics={}, best_metrics={})


@pytest.fixture
def storage(tmp_path):
    with open_storage(f"sqlite:///{tmp_path}/optuna.db") as opened:
        yield opened


def test_no_more_trials_are_drawn_than_run_at_a_time_or_are_wanted(storage):
    stage = Stage(storage, num_trials=3)
    conductor = stage.conductor
    drawn = [conductor.next_trial() for _ in range(3)]
    assert [trial and trial["number"] for trial in drawn] == [0, 1, None]
    conductor.end(0, "failed", reason="x")
    assert (conductor.next_trial()["number"], conductor.wanted) == (2, 0)
    conductor.end(1, "failed", reason="x")
    assert conductor.next_trial() is None


def test_a_trial_is_handed_the_whole_configuration_with_its_parameters(storage):
    stage = Stage(storage)
    data = json.loads(stage.conductor.next_trial()["project"])
    assert data["train"]["lr"] == stage.study.trials[0].params["train.lr"]


def test_study_and_runs_are_told_the_same(storage):
    stage = Stage(storage)
    stage.conductor.next_trial()
    stage.epoch(0, 1, 0.6)
    stage.conductor.end(0, "complete")
    assert stage.runs.said == [(0, "start"), (0, 1), (0, "complete")]
    told = stage.study.trials[0]
    assert (told.state, told.value, told.user_attrs["raymlops.run_id"]) == (TrialState.COMPLETE, 0.6, "run-0")


def test_the_time_is_up_at_timeout_s(storage):
    stage = Stage(storage, timeout_s=60.0)
    stage.now = 59.9
    assert not stage.conductor.halting
    stage.now = 60.0
    assert (stage.conductor.halting, stage.conductor.halt, stage.conductor.wanted) == (True, "timed out", 0)


def test_a_halted_sweep_leaves_no_trial_open(storage):
    stage = Stage(storage)
    stage.conductor.next_trial()
    stage.conductor.next_trial()
    stage.epoch(0, 1, 0.6)
    stage.conductor.halt = "interrupted"
    stage.conductor.close()
    assert [trial.state for trial in stage.study.trials] == [TrialState.PRUNED, TrialState.FAIL]
    assert [record.reason for record in stage.trials.records] == ["the sweep was interrupted"] * 2
    assert stage.runs.said[-3:] == [(0, "pruned"), (1, "failed"), ("parent", "killed")]


def test_the_best_is_the_best_of_those_that_ran_to_their_end(storage):
    stage = Stage(storage)
    for status, value in (("pruned", 0.9), ("complete", 0.7), ("complete", 0.8), ("failed", 0.95)):
        number = stage.conductor.next_trial()["number"]
        stage.epoch(number, 1, value)
        stage.conductor.end(number, status)
    assert (stage.events[-1].best.number, stage.events[-1].best.value) == (2, 0.8)


def test_the_time_left_follows_from_the_rate_so_far(storage):
    stage = Stage(storage, num_trials=4)
    stage.conductor.next_trial()
    assert stage.events[-1].eta_s is None
    stage.now = 10.0
    stage.conductor.end(0, "failed")
    assert stage.events[-1].eta_s == 30.0  # one of four took 10 s


def test_a_display_that_raises_is_asked_no_more_and_stops_no_trial_from_ending(storage):
    stage = Stage(storage)
    stage.conductor.next_trial()
    stage.conductor.next_trial()
    stage.conductor._on_event = lambda event: 1 / 0
    with pytest.raises(ZeroDivisionError):
        stage.conductor.close()
    stage.conductor.close()
    assert [trial.state for trial in stage.study.trials] == [TrialState.FAIL] * 2
