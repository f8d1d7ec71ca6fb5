"""What Optuna is told of trials whose results are invented here."""

from __future__ import annotations

import math

import pytest
from optuna.trial import TrialState

from raymlops.config.schema import SweepSection
from raymlops.config.space import parse_distribution
from raymlops.tuning.storage import create_study, open_storage
from raymlops.tuning.trials import REASON, RUN_ID, Trials

SPACE = {
    "train.lr": parse_distribution({"float": [1e-5, 1e-1], "log": True}),
    "train.optimizer": parse_distribution({"categorical": ["sgd", "adamw"]}),
    "train.momentum": parse_distribution({"float": [0.5, 0.99], "when": {"train.optimizer": "sgd"}}),
}


@pytest.fixture
def storage(tmp_path):
    with open_storage(f"sqlite:///{tmp_path}/optuna.db") as opened:
        yield opened


def study_of(storage, name="s", **sweep):
    return create_study(storage, name, sweep=SweepSection(startup_trials=3, **sweep), mode="min")


@pytest.fixture
def study(storage):
    return study_of(storage)


@pytest.fixture
def trials(study):
    return Trials(study, space=SPACE)


def ended(trials, status, values=(), **details):
    number = trials.ask().number
    for epoch, value in enumerate(values, start=1):
        trials.report(number, epoch=epoch, value=value, metrics={"validation/loss": value})
    return trials.tell(number, status, **details)


def test_a_trial_that_ran_to_its_end_is_complete_with_its_curve(study, trials):
    record = ended(trials, "complete", [0.5, 0.4], run_id="r1")
    told = study.trials[0]
    assert (told.state, told.value, told.intermediate_values) == (TrialState.COMPLETE, 0.4, {1: 0.5, 2: 0.4})
    assert told.user_attrs == {RUN_ID: "r1"}
    assert (record.value, record.epochs, record.metrics) == (0.4, 2, {"validation/loss": 0.4})


def test_a_trial_that_the_scheduler_stopped_is_pruned_and_not_complete(study, trials):
    record = ended(trials, "pruned", [0.5])
    assert (study.trials[0].state, study.trials[0].value) == (TrialState.PRUNED, 0.5)
    assert (record.status, record.value) == ("pruned", 0.5)


@pytest.mark.parametrize(
    ("status", "values", "reason"),
    [
        ("failed", [0.5], "ValueError: no"),
        ("complete", [0.5, math.nan], "its metric is nan"),
        ("complete", [math.inf], "its metric is inf"),
        ("pruned", [], "its metric was never reported"),
    ],
)
def test_a_trial_without_a_finite_value_fails_with_its_reason(study, trials, status, values, reason):
    record = ended(trials, status, values, reason=reason if status == "failed" else "")
    assert (study.trials[0].state, study.trials[0].user_attrs[REASON]) == (TrialState.FAIL, reason)
    assert (record.status, record.value, record.reason) == ("failed", None, reason)


def test_a_trial_cannot_be_told_twice(trials):
    number = trials.ask().number
    trials.tell(number, "failed")
    with pytest.raises(KeyError):
        trials.tell(number, "failed")


def test_open_and_ended_trials_are_counted(trials):
    first, second = trials.ask().number, trials.ask().number
    trials.tell(second, "failed")
    assert (trials.open, trials.asked, [record.number for record in trials.records]) == ((first,), 2, [second])


def suggestions(storage, name, **sweep):
    trials = Trials(study_of(storage, name, **sweep), space=SPACE)
    drawn = []
    for index in range(10):
        trial = trials.ask()
        drawn.append(trial.params)
        distance = abs(math.log10(trial.params["train.lr"]) + 3)
        trials.report(trial.number, epoch=1, value=distance, metrics={})
        trials.tell(trial.number, ("complete", "pruned", "failed")[index % 3])
    return drawn


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_gives_the_same_suggestions(storage, sampler):
    first, again, other = (
        suggestions(storage, f"{sampler}{index}", sampler=sampler, seed=seed) for index, seed in enumerate((5, 5, 6))
    )
    assert first == again != other
