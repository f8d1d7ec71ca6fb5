"""Which trials of a sweep say something about another one, and what the other's study then knows."""

from __future__ import annotations

import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from raymlops.config.schema import ProjectSpec
from raymlops.config.space import parse_distribution
from raymlops.records import TrialRecord
from raymlops.tuning.search_space import draw, draw_order
from raymlops.tuning.study.fork import add_carried, carried, carry_over, distribution_of
from raymlops.tuning.study.records import history_of
from raymlops.tuning.study.storage import create_study
from raymlops.tuning.study.trials import Trials

LR = {"float": [1e-4, 1e-1], "log": True}
MOMENTUM = {"float": [0.5, 0.99], "when": {"train.optimizer": "sgd"}}
OPTIMIZER = {"categorical": ["sgd", "adamw"]}


def spec(space, *, train=None, config=None, **sweep):
    return ProjectSpec.model_validate(
        {
            "project": {"name": "p"},
            "recipe": {"import": "tiny:Tiny", "config": {"hidden": 8, "flag": True, **(config or {})}},
            "train": train or {},
            "sweep": {"space": {key: parse_distribution(words) for key, words in space.items()}, **sweep},
        }
    )


def record(params, *, status="complete"):
    return TrialRecord(number=0, params=params, status=status, value=0.5)


def test_a_trial_inside_of_a_narrower_range_is_carried():
    new = spec({"train.lr": {"float": [1e-3, 1e-1], "log": True}})
    assert carried(spec({"train.lr": LR}), new, record=record({"train.lr": 0.01})) == {"train.lr": 0.01}


def test_a_trial_outside_of_the_new_range_is_not():
    new = spec({"train.lr": {"float": [1e-3, 1e-1], "log": True}})
    found = carried(spec({"train.lr": LR}), new, record=record({"train.lr": 0.0005}))
    assert found == "train.lr outside the new space"


def test_what_was_fixed_and_is_searched_now_becomes_a_parameter():
    old = spec({"train.lr": LR}, config={"hidden": 16})
    new = spec({"train.lr": LR, "recipe.config.hidden": {"int": [4, 64]}})
    assert carried(old, new, record=record({"train.lr": 0.01})) == {"train.lr": 0.01, "recipe.config.hidden": 16}


def test_a_list_is_the_same_whether_it_is_searched_or_fixed():
    sizes = {"recipe.config.sizes": {"categorical": [[4, 2], [8]]}}
    fixed, searched = (spec({"train.lr": LR, **more}, config={"sizes": [4, 2]}) for more in ({}, sizes))
    params = {"train.lr": 0.01, "recipe.config.sizes": "[4, 2]"}
    assert carried(fixed, searched, record=record({"train.lr": 0.01})) == params
    assert carried(searched, fixed, record=record(params)) == {"train.lr": 0.01}
    assert carried(searched, searched, record=record(params)) == params


@pytest.mark.parametrize(("hidden", "expected"), [(8, {"train.lr": 0.01}), (16, "recipe.config.hidden changed")])
def test_what_was_searched_and_is_fixed_now_must_have_had_that_value(hidden, expected):
    old = spec({"train.lr": LR, "recipe.config.hidden": {"int": [4, 64]}})
    params = {"train.lr": 0.01, "recipe.config.hidden": hidden}
    assert carried(old, spec({"train.lr": LR}), record=record(params)) == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"train": {"epochs": 6}}, "train.epochs changed"),
        ({"train": {"epochs": 5, "max_steps": 100}}, "train.max_steps changed"),
        ({"train": {"patience": 2}}, "train.patience changed"),
        ({"train": {"seed": 1}}, "train.seed changed"),
        ({"train": {"metric": "validation/auc", "mode": "max"}}, "train.metric changed"),
        ({"config": {"flag": 1}}, "recipe.config.flag changed"),
        ({"config": {"depth": 2}}, "recipe.config.depth changed"),
        ({"workers_per_trial": 2}, "sweep.workers_per_trial changed"),
    ],
)
def test_whatever_else_decides_a_result_must_be_as_it_was(change, reason):
    assert (
        carried(spec({"train.lr": LR}), spec({"train.lr": LR}, **change), record=record({"train.lr": 0.01})) == reason
    )


def test_what_decides_no_result_may_be_another():
    old = spec({"train.lr": LR, "train.eval_batch_size": {"int": [1024, 4096]}})
    new = spec({"train.lr": LR}, train={"num_workers": 2, "keep_checkpoints": 5}, num_trials=99, sampler="gp")
    params = {"train.lr": 0.01, "train.eval_batch_size": 1024}
    assert carried(old, new, record=record(params)) == {"train.lr": 0.01}


def test_a_parameter_without_its_condition_must_have_the_value_that_the_new_sweep_gives_it():
    """The momentum of sgd is beta1 of adamw: it decides there too, where the space does not search it."""
    space = {"train.optimizer": OPTIMIZER, "train.momentum": MOMENTUM}
    params = {"train.optimizer": "adamw"}
    assert carried(spec(space), spec(space), record=record(params)) == params
    other = spec(space, train={"momentum": 0.8})
    assert carried(spec(space), other, record=record(params)) == "train.momentum changed"
    params = {"train.optimizer": "sgd", "train.momentum": 0.7}
    assert carried(spec(space), other, record=record(params)) == params


def test_true_is_not_one_of_the_choices_one_and_two():
    old, new = spec({"train.lr": LR}), spec({"train.lr": LR, "recipe.config.flag": {"categorical": [1, 2]}})
    assert carried(old, new, record=record({"train.lr": 0.01})) == "recipe.config.flag outside the new space"


def test_a_failed_trial_is_not_carried():
    same = spec({"train.lr": LR})
    assert carried(same, same, record=record({"train.lr": 0.01}, status="failed")) == "failed"


@pytest.mark.parametrize(
    "words",
    [LR, {"float": [0, 1], "step": 0.25}, {"int": [2, 8], "step": 2}, {"int": [1, 64], "log": True}, OPTIMIZER],
)
def test_a_carried_parameter_has_the_distribution_that_a_drawn_one_has(storage, words):
    space = {"train.lr": parse_distribution(words)}
    study = create_study(storage, "s", objectives=spec({}).objectives)
    trial = study.ask()
    draw(trial, space, order=draw_order(space))
    assert trial.distributions == {"train.lr": distribution_of(space["train.lr"])}


@pytest.fixture
def storage():
    return InMemoryStorage()


def swept(storage, old, statuses, **best):
    """Return the study of a sweep whose trials ended as told, with a loss of 0.5, 0.625, ... after two epochs."""
    objectives = old.objectives
    study = create_study(storage, "old", objectives=objectives)
    trials = Trials(study, section=old.sweep, objectives=objectives)
    for number, status in enumerate(statuses):
        trials.ask()
        value = 0.5 + number / 8
        for epoch in (1, 2):
            metrics = {"validation/loss": value + 2 - epoch, **best}
            trials.report(number, epoch=epoch, value=value + 2 - epoch, metrics=metrics, best_metrics=metrics)
        trials.tell(number, status, run_id=f"run{number}")
    trials.flush()
    return study


def fork(storage, old, old_study, new, *, name="new"):
    study = create_study(storage, name, objectives=new.objectives)
    return study, add(study, old_study, old, new)


def add(study, old_study, old, new, *, sweep_id="abc"):
    kept, left = carry_over(old_study, old_spec=old, new_spec=new, sweep_id=sweep_id)
    add_carried(study, kept)
    return len(kept), left


def test_the_new_study_knows_the_old_trials_and_counts_none_as_its_own(storage):
    old = spec({"train.lr": LR})
    old_study = swept(storage, old, ["complete", "pruned", "failed"])
    study, found = fork(storage, old, old_study, old)
    assert found == (2, {"failed": 1})
    before, after = old_study.trials, study.trials
    assert [trial.state for trial in after] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert [trial.value for trial in after] == [0.5, 0.625]
    assert after[1].intermediate_values == {1: 1.625, 2: 0.625}
    assert [trial.params for trial in after] == [trial.params for trial in before[:2]]
    assert history_of(after[0]) == history_of(before[0])
    trials = Trials(study, section=old.sweep, objectives=old.objectives)
    assert [record.carried_from for record in trials.records] == ["abc/0", "abc/1"]
    assert (trials.records[0].run_id, trials.asked) == ("run0", 0)
    assert trials.ask().number == 2


def test_carrying_again_after_a_death_adds_nothing_twice(storage):
    old = spec({"train.lr": LR})
    old_study = swept(storage, old, ["complete", "complete"])
    study, first = fork(storage, old, old_study, old)
    again = add(study, old_study, old, old)
    assert (first, again, len(study.trials)) == ((2, {}), (2, {}), 2)


def test_a_fork_of_a_fork_says_where_a_trial_ran(storage):
    old = spec({"train.lr": LR})
    middle, _ = fork(storage, old, swept(storage, old, ["complete"]), old)
    last = create_study(storage, "last", objectives=old.objectives)
    add(last, middle, old, old, sweep_id="def")
    assert Trials(last, section=old.sweep, objectives=old.objectives).records[0].carried_from == "abc/0"


def test_what_another_program_added_to_a_sweep_never_wins_in_its_fork(storage):
    """As in the sweep; a fork of the fork knows both of two."""
    old, sources = spec({"train.lr": LR}), []
    study = swept(storage, old, [])
    for name in ("middle", "last"):
        study.optimize(lambda trial: trial.suggest_float("train.lr", 1e-4, 1e-1, log=True) - 9.0, n_trials=1)
        forked = create_study(storage, name, objectives=old.objectives)
        add(forked, study, old, old)
        study = forked
        records = Trials(study, section=old.sweep, objectives=old.objectives).records
        sources.append([record.carried_from for record in records if record.imported])
    assert sources == [["optuna:old/0"], ["optuna:old/0", "optuna:middle/1"]]


def test_a_sweep_of_another_metric_takes_its_value_from_what_was_reported(storage):
    old = spec({"train.lr": LR})
    new = spec({"train.lr": LR}, metric="validation/auc", mode="max")
    study, found = fork(storage, old, swept(storage, old, ["pruned"], **{"validation/auc": 0.9}), new)
    assert found == (1, {})
    assert (study.trials[0].value, study.trials[0].intermediate_values) == (0.9, {2: 0.9})


def test_several_objectives_and_constraints_are_taken_from_what_was_reported(storage):
    old = spec({"train.lr": LR})
    new = spec(
        {"train.lr": LR},
        objectives={"validation/loss": "min", "latency_ms": "min"},
        constraints={"latency_ms": {"max": 2.0}},
        scheduler="none",
    )
    study, found = fork(storage, old, swept(storage, old, ["complete", "pruned"], latency_ms=3.0), new)
    assert found == (2, {})
    assert (study.trials[0].values, study.trials[0].constraints) == ([0.5, 3.0], {"latency_ms max": 1.0})
    records = Trials(study, section=new.sweep, objectives=new.objectives).records
    assert [(record.values, record.feasible) for record in records] == [((0.5, 3.0), False), ((0.625, 3.0), False)]


def test_a_trial_that_never_reported_what_is_wanted_now_is_not_carried(storage):
    old = spec({"train.lr": LR})
    new = spec({"train.lr": LR}, metric="validation/auc", mode="max")
    _, found = fork(storage, old, swept(storage, old, ["complete"]), new)
    assert found == (0, {"did not report a metric of the new sweep": 1})
