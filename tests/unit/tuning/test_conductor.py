"""The course of a sweep, event by event, without Ray: what the study and the child runs are told."""

from __future__ import annotations

import json

import pytest
from optuna.trial import TrialState
from ray import exceptions
from tiny import Tiny

from raymlops.config.load import load_data
from raymlops.project import bind
from raymlops.records import SpentRecord
from raymlops.tuning.checks import objectives_of
from raymlops.tuning.conductor import Conductor
from raymlops.tuning.points import point
from raymlops.tuning.storage import create_study, open_storage
from raymlops.tuning.trials import Trials

DIED = exceptions.RayActorError(None, "The actor died.\nWorker exits with an exit code 7.")


class Runs:
    """Stands for the child runs: remembers what was said of each trial."""

    def __init__(self) -> None:
        self.said = []

    def start(self, number, params):
        self.said.append((number, "start"))

    def log(self, number, *, epoch, metrics):
        self.said.append((number, epoch))

    def end(self, number, status, *, reason="", history=None):
        self.said.append((number, status))

    def news(self):
        return []

    def suspend(self, number):
        self.said.append((number, "waiting"))

    def run_id(self, number, *, wait_s=0.0):
        return f"run-{number}"


class Stage:
    """A conductor with what it conducts; another one on the same storage is a driver that resumes the sweep."""

    def __init__(self, storage, *, study=None, before=None, **sweep) -> None:
        space = {"train.lr": {"float": [0.1, 0.2]}}
        section = {"metric": "validation/auc", "mode": "max", "max_concurrent": 2, "space": space, **sweep}
        project = bind(load_data({"project": {"name": "p"}, "recipe": {"import": Tiny}, "sweep": section}))
        self.now = 0.0
        self.events, self.noted, self.discarded = [], [], []
        self.runs = Runs()
        objectives = objectives_of(project.spec)
        self.study = study or create_study(storage, "s", objectives=objectives)
        section = project.spec.sweep
        self.trials = Trials(
            self.study, section=section, objectives=objectives, point=lambda index: point(section, index)
        )
        self.conductor = Conductor(
            project,
            trials=self.trials,
            children=self.runs,
            sweep_uri="/sweeps/s",
            max_concurrent=2,
            before=before,
            on_event=self.events.append,
            note=self.noted.append,
            discard=self.discarded.append,
            clock=lambda: self.now,
        )

    def epoch(self, number, epoch, value, **more):
        metrics = {"validation/auc": value}
        result = {"epochs": epoch, "step": epoch * 10, "value": value, "metrics": metrics, "best_metrics": metrics}
        self.conductor.result(number, {**result, "saved": False, "restored": {}, **more})

    def run(self, status, value):
        """Run a trial of one epoch and return its number."""
        number = self.conductor.next_trial()["number"]
        self.epoch(number, 1, value)
        self.conductor.end(number, status)
        return number

    def states(self):
        self.trials.flush()
        return [trial.state for trial in self.study.get_trials()]


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
    assert (conductor.next_trial()["number"], conductor.wanted, conductor.done) == (2, 0, False)
    for number in (1, 2):
        conductor.end(number, "failed", reason="x")
    assert (conductor.next_trial(), conductor.done) == (None, True)


def test_a_short_trial_is_drawn_while_others_run_and_never_in_the_moment_after_one_was_handed_out(storage):
    stage = Stage(storage, num_trials=9)
    stage.run("complete", 0.5)
    for _ in range(2):
        stage.conductor.next_trial()
    assert stage.conductor.next_trial() is None
    assert len(stage.study.get_trials()) == 3
    stage.conductor.between_steps()
    assert stage.conductor.next_trial() is None
    assert len(stage.study.get_trials()) == 4
    stage.conductor.end(1, "failed", reason="x")
    assert stage.conductor.next_trial()["number"] == 3


def test_long_trials_are_drawn_when_there_is_room(storage):
    """The sampler is to know all that has ended."""
    stage = Stage(storage, num_trials=9)
    number = stage.conductor.next_trial()["number"]
    stage.now = 60.0
    stage.conductor.end(number, "failed", reason="x")
    for _ in range(2):
        stage.conductor.next_trial()
    stage.conductor.between_steps()
    assert stage.conductor.next_trial() is None
    assert len(stage.study.get_trials()) == 3


def test_a_trial_is_handed_the_whole_configuration_with_its_parameters(storage):
    stage = Stage(storage)
    config = stage.conductor.next_trial()
    assert json.loads(config["project"])["train"]["lr"] == stage.study.get_trials()[0].params["train.lr"]
    assert (config["folder"], config["goes_on"]) == ("/sweeps/s/trials/0", False)


def test_study_and_runs_are_told_the_same(storage):
    stage = Stage(storage)
    stage.run("complete", 0.6)
    stage.trials.flush()
    assert stage.runs.said == [(0, "start"), (0, 1), (0, "complete")]
    told = stage.study.get_trials()[0]
    assert (told.state, told.value, told.user_attrs["raymlops"]["run_id"]) == (TrialState.COMPLETE, 0.6, "run-0")


def test_a_combination_that_the_recipe_refuses_fails_without_a_process(storage):
    space = {"recipe.config.hidden": {"int": [1, 4]}, "train.lr": {"float": [0.1, 0.2]}}
    stage = Stage(storage, num_trials=2, space=space)
    refused = stage.conductor._project

    class Refusing:
        spec = refused.spec

        def with_params(self, params):
            from raymlops.errors import UsageError

            if stage.trials.asked == 1:
                raise UsageError("hidden 3 does not go with it")
            return refused.with_params(params)

    stage.conductor._project = Refusing()
    assert stage.conductor.next_trial()["number"] == 1
    assert stage.runs.said == [(0, "start"), (0, "failed"), (1, "start")]
    assert stage.trials.records[0].reason == "UsageError: hidden 3 does not go with it"


def test_a_used_up_budget_halts_the_sweep_and_prunes_what_runs(storage):
    stage = Stage(storage, timeout_s=60.0)
    stage.conductor.next_trial()
    stage.conductor.next_trial()
    stage.epoch(0, 1, 0.6)
    stage.now = 59.9
    assert not stage.conductor.halting
    stage.now = 60.0
    assert stage.conductor.halting
    stage.conductor.close()
    assert stage.states() == [TrialState.PRUNED, TrialState.FAIL]
    assert {record.reason for record in stage.trials.records} == {"the sweep reached its timeout_s of 60 s"}
    assert stage.conductor.next_trial() is None


def test_time_before_a_resume_counts(storage):
    stage = Stage(storage, timeout_s=60.0, before=SpentRecord(wall_s=50.0))
    stage.now = 10.0
    assert stage.conductor.halting


def test_what_it_took_is_noted_now_and_then_and_at_the_end(storage):
    stage = Stage(storage)
    stage.conductor.next_trial()
    stage.now = 36.0
    stage.conductor.between_steps()
    assert json.loads(stage.noted[-1]["raymlops.spent"])["cpu_hours"] == 0.01
    stage.conductor.close()
    assert len(stage.noted) == 2


def test_a_target_ends_the_sweep(storage):
    stage = Stage(storage, target=0.9)
    stage.run("complete", 0.8)
    assert not stage.conductor.halting
    stage.run("complete", 0.95)
    assert (stage.conductor.halting, stage.conductor.stopped) == (True, "reached its target of 0.9 with 0.95")


def test_patience_counts_trials_without_a_better_one(storage):
    stage = Stage(storage, patience=2)
    for value in (0.5, 0.6, 0.4):
        stage.run("complete", value)
    assert not stage.conductor.halting
    stage.run("pruned", 0.3)
    assert stage.conductor.stopped == "found nothing better in 2 trials (patience 2)"


def test_an_interrupted_sweep_puts_its_trials_back_and_they_go_on(storage):
    stage = Stage(storage, num_trials=3)
    params = [json.loads(stage.conductor.next_trial()["project"])["train"]["lr"] for _ in range(2)]
    stage.epoch(0, 1, 0.6)
    stage.conductor.halt = "interrupted"
    stage.conductor.close()
    assert stage.states() == [TrialState.WAITING] * 2
    assert stage.runs.said[-2:] == [(0, "waiting"), (1, "waiting")]

    again = Stage(storage, study=stage.study, num_trials=3)
    for opened in again.trials.reopen():
        again.conductor.goes_on(opened)
    first, second = again.conductor.next_trial(), again.conductor.next_trial()
    assert [json.loads(config["project"])["train"]["lr"] for config in (first, second)] == params
    assert (first["number"], first["goes_on"], second["number"]) == (0, True, 1)
    assert again.states() == [TrialState.RUNNING] * 2
    again.conductor.end(0, "failed", reason="x")
    config = again.conductor.next_trial()
    assert (config["number"], config["goes_on"], again.conductor.wanted) == (2, False, 0)


def test_epochs_that_a_checkpoint_brought_back_are_logged(storage):
    stage = Stage(storage)
    stage.conductor.next_trial()
    stage.epoch(0, 3, 0.6, restored={1: {"validation/auc": 0.4}, 2: {"validation/auc": 0.5}})
    assert stage.runs.said == [(0, "start"), (0, 1), (0, 2), (0, 3)]


def test_a_trial_whose_process_died_goes_on_in_another_one_and_then_fails(storage):
    stage = Stage(storage, num_trials=1, max_restarts=1)
    stage.conductor.next_trial()
    stage.conductor.died(0, DIED)
    assert not stage.conductor.done
    config = stage.conductor.next_trial()
    assert (config["number"], config["goes_on"]) == (0, True)
    assert stage.events[-2].message.startswith("trial 0 goes on: the trial's process died")
    stage.conductor.died(0, DIED)
    assert stage.conductor.done
    assert stage.trials.records[0].reason.endswith("Worker exits with an exit code 7. (2 times)")


def test_a_trial_that_ended_leaves_no_checkpoint(storage):
    stage = Stage(storage)
    stage.conductor.next_trial()
    stage.conductor.next_trial()
    stage.epoch(0, 1, 0.5, saved=True)
    for number in (0, 1):
        stage.conductor.end(number, "complete")
    assert stage.discarded == [0]


def test_the_best_is_the_best_of_those_that_ran_to_their_end(storage):
    stage = Stage(storage)
    for status, value in (("pruned", 0.9), ("complete", 0.7), ("complete", 0.8), ("failed", 0.95)):
        stage.run(status, value)
    assert (stage.events[-1].best.number, stage.events[-1].best.value) == (2, 0.8)


def test_a_resumed_sweep_shows_what_it_had(storage):
    stage = Stage(storage, num_trials=4)
    stage.run("complete", 0.7)
    stage.trials.flush()
    again = Stage(storage, study=stage.study, num_trials=4)
    again.conductor.next_trial()
    event = again.events[-1]
    assert (event.best.number, event.counts["complete"], event.total) == (0, 1, 4)


def test_the_time_left_follows_from_the_rate_so_far(storage):
    stage = Stage(storage, num_trials=4)
    stage.conductor.next_trial()
    assert stage.events[-1].eta_s is None
    stage.now = 10.0
    stage.conductor.end(0, "failed")
    assert stage.events[-1].eta_s == 30.0  # one of four took 10 s


def test_a_display_that_raises_is_asked_no_more_and_keeps_no_trial_open(storage):
    stage = Stage(storage)
    stage.conductor.next_trial()
    stage.conductor.next_trial()
    stage.conductor._on_event = lambda event: 1 / 0
    with pytest.raises(ZeroDivisionError):
        stage.conductor.close()
    stage.conductor.close()
    assert TrialState.RUNNING not in stage.states()
