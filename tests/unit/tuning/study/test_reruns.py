"""The repeats of a sweep in its study: which are missing, and that samplers and limits do not see them."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState

from raymlops.config.schema import ProjectSpec
from raymlops.config.space import parse_distribution
from raymlops.tuning.study.fork import carry_over
from raymlops.tuning.study.reruns import add_repeats, repeats_left, retry_failed
from raymlops.tuning.study.storage import create_study, open_storage
from raymlops.tuning.study.trials import Trials

METRIC = "validation/loss"


def spec(**sweep):
    section = {
        "space": {"train.lr": parse_distribution({"float": [0.0, 1.0]})},
        "sampler": "random",
        "num_trials": 3,
        "repeats": {"top": 2, "seeds": 3},
    }
    return ProjectSpec.model_validate(
        {
            "project": {"name": "p"},
            "recipe": {"import": "tiny:Tiny"},
            "train": {"seed": 5},
            "sweep": {**section, **sweep},
        }
    )


@pytest.fixture
def storage(tmp_path):
    with open_storage(f"sqlite:///{tmp_path}/optuna.db") as opened:
        yield opened


@pytest.fixture
def study(storage):
    return create_study(storage, "s", objectives=spec().objectives)


def trials_of(study, **sweep):
    made = spec(**sweep)
    return Trials(study, section=made.sweep, objectives=made.objectives)


def end(trials, number, value, status="complete"):
    metrics = {METRIC: value}
    trials.report(number, epoch=1, value=value, metrics=metrics, best_metrics=metrics)
    return trials.tell(number, status)


def searched(study, *values, **sweep):
    trials = trials_of(study, **sweep)
    for value in values:
        end(trials, trials.ask().number, value)
    trials.flush()
    return trials


def added(study):
    return [
        (trial.user_attrs["raymlops:repeat_of"], trial.user_attrs["raymlops:seed"])
        for trial in study.get_trials()
        if "raymlops:repeat_of" in trial.user_attrs
    ]


def test_the_best_are_trained_with_the_seeds_that_follow(study):
    """Each one's second seed first. A repeated call adds none, also once some have ended."""
    searched(study, 0.3, 0.1, 0.2)
    assert repeats_left(study.get_trials(), spec=spec()) == 4
    assert add_repeats(study, spec=spec()) == 4
    assert added(study) == [(1, 6), (2, 6), (1, 7), (2, 7)]
    trials = trials_of(study)
    opened = trials.reopen(repeats=True)
    params = {trial.number: trial.params for trial in study.get_trials()[:3]}
    assert [(each.params, each.settings["train.seed"]) for each in opened] == [
        (params[number], seed) for number, seed in added(study)
    ]
    trials.open[3].fingerprint = "v3:abc"
    end(trials, 3, 0.5)
    trials.tell(4, "failed", reason="x")
    trials.flush()
    assert (add_repeats(study, spec=spec()), repeats_left(study.get_trials(), spec=spec())) == (0, 2)
    record = trials.records[3]
    assert (record.repeat_of, record.seed, record.status, record.fingerprint) == (1, 6, "complete", "v3:abc")
    assert trials_of(study).records[3] == record


def test_more_of_them_can_be_asked_for_later(study):
    searched(study, 0.3, 0.1, 0.2)
    add_repeats(study, spec=spec(repeats={"top": 1, "seeds": 2}))
    assert added(study) == [(1, 6)]
    assert add_repeats(study, spec=spec()) == 3
    assert added(study) == [(1, 6), (2, 6), (1, 7), (2, 7)]


def test_trials_that_another_program_added_are_not_repeated(study):
    """They may be better than any of the sweep's, and lack parameters of its space."""
    searched(study, 0.2, 0.1)
    study.optimize(lambda trial: trial.suggest_float("other", 0.0, 1.0) - 9.0, n_trials=2)
    add_repeats(study, spec=spec())
    assert added(study) == [(1, 6), (0, 6), (1, 7), (0, 7)]


def test_a_repeat_that_another_program_ended_is_subtracted_once(study):
    """As Optuna's ``optimize`` with a heartbeat ends those of a killed driver."""
    searched(study, 0.2, 0.1)
    add_repeats(study, spec=spec())
    trial_id = study.get_trials()[2]._trial_id
    for state in (TrialState.RUNNING, TrialState.FAIL):
        study._storage.set_trial_state_values(trial_id, state)
    assert trials_of(study).asked == 2
    assert retry_failed(study) == [2]


def test_a_search_without_a_complete_trial_has_none(study):
    trials = trials_of(study)
    end(trials, trials.ask().number, 0.5, "pruned")
    trials.flush()
    assert add_repeats(study, spec=spec()) == 0


def test_repeats_count_in_no_limit_of_the_search(study):
    searched(study, 0.3, 0.1, 0.2)
    add_repeats(study, spec=spec())
    trials = trials_of(study, num_trials=5)
    assert (trials.asked, trials.total, trials.repeats, trials.reopen()) == (3, 5, 4, [])


def test_one_that_the_recipe_rejects_counts_nowhere_and_is_not_added_again(study):
    searched(study, 0.3, 0.1, 0.2)
    add_repeats(study, spec=spec())
    driver = trials_of(study)
    driver.reopen(repeats=True)
    driver.refuse(4, "the recipe rejects it")
    driver.flush()
    for trials in (driver, trials_of(study)):
        assert (trials.asked, trials.refused, trials.total, trials.repeats) == (3, 0, 3, 3)
    assert add_repeats(study, spec=spec()) == 0


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "gp", "own_samplers.NearBest"])
def test_a_search_that_is_extended_draws_as_if_there_had_been_none(storage, sampler):
    """Whatever the repeats gave: samplers do not see them."""
    section = {"sampler": sampler, "startup_trials": 2, "num_trials": 8, "scheduler": "none"}
    values = [0.3, 0.1, 0.2, 0.25]
    drawn = []
    for name, repeated in (("with", True), ("without", False)):
        study = create_study(storage, name, objectives=spec().objectives)
        searched(study, *values, **section)
        if repeated:
            add_repeats(study, spec=spec())
            trials = trials_of(study, **section)
            for opened in trials.reopen(repeats=True):
                end(trials, opened.number, -5.0 if opened.repeat_of == 2 else 5.0)
            trials.flush()
        trials = searched(study, 0.15, 0.12, **section)
        drawn.append([record.params for record in trials.records if record.repeat_of is None])
    assert drawn[0] == drawn[1]


def test_one_that_failed_is_trained_again_with_its_own_seed(study):
    searched(study, 0.3, 0.1, 0.2)
    add_repeats(study, spec=spec())
    trials = trials_of(study)
    trials.reopen(repeats=True)
    trials.tell(3, "failed", reason="x")
    for number in (4, 5, 6):
        end(trials, number, 0.5)
    trials.flush()
    assert retry_failed(study) == [3]
    again = trials_of(study)
    assert [(each.number, each.repeat_of, each.seed) for each in again.reopen(repeats=True)] == [(7, 1, 6)]
    assert [record.number for record in again.records] == [0, 1, 2, 4, 5, 6]
    assert (again.asked, again.repeats) == (3, 4)


def test_a_fork_carries_over_no_repeats(study):
    searched(study, 0.3, 0.1, 0.2)
    add_repeats(study, spec=spec())
    trials = trials_of(study)
    for opened in trials.reopen(repeats=True):
        end(trials, opened.number, 0.1)
    trials.flush()
    kept, left = carry_over(study, old_spec=spec(), new_spec=spec(), sweep_id="a")
    assert (len(kept), dict(left)) == (3, {})
    assert {trial.state for trial in kept.values()} == {TrialState.COMPLETE}
