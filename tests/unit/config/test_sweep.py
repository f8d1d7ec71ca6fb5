"""What the fields of a sweep must hold together is said with the line of the field to change."""

from __future__ import annotations

import math

import pytest
from tiny import Tiny

from raymlops.config.load import dump, load, load_data
from raymlops.config.schema import ProjectSpec
from raymlops.errors import ConfigError
from raymlops.project import bind
from raymlops.records import Objective

TINY = {"project": {"name": "a"}, "recipe": {"import": Tiny}}
SPACE = """\
space:
    train.lr: {float: [0.0001, 0.1], log: true}
    train.epochs: {int: [2, 8]}
    train.weight_decay: {float: [0, 1], step: 0.25}
    train.optimizer: {categorical: [sgd, adam]}
    train.momentum: {float: [0.5, 0.9], when: {train.optimizer: sgd}}
"""


def spec(*overrides, **sweep):
    data = {"project": {"name": "a"}, "recipe": {"import": "m:C"}, "sweep": sweep}
    return load_data(data, overrides=overrides).spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "objectives: {validation/loss: min}",
            (
                "4:15: sweep.objectives: got one metric; at least two, or instead of objectives "
                "{metric: validation/loss, mode: min}"
            ),
        ),
        ("objectives: {a: min, b: up}", "4:27: sweep.objectives.b: got 'up'; one of 'min' or 'max'"),
        (
            "objectives: {a: min, b: max}\n  metric: a",
            "5:11: sweep.metric: cannot be combined with objectives, which set both; write one or the other",
        ),
        (
            "objectives: {a: min, b: max}\n  mode: min",
            "5:9: sweep.mode: cannot be combined with objectives, which set both; write one or the other",
        ),
        (
            "objectives: {a: min, b: max}\n  repeats: {seeds: 3}",
            "5:20: sweep.repeats.seeds: cannot be combined with objectives: there is no single mean to choose by",
        ),
        (
            "user_attrs: [size, epochs]",
            "4:22: sweep.user_attrs[1]: epochs is a column of sweep.trials(); give the metric another name",
        ),
        (
            "user_attrs: [size, raymlops.driver]",
            (
                "4:22: sweep.user_attrs[1]: raymlops.driver is an attribute of raymlops' own; give the metric another "
                "name"
            ),
        ),
        (
            "objectives: {a: min, b: max}\n  scheduler: asha",
            (
                "5:14: sweep.scheduler: got 'asha'; none: a scheduler stops trials by one metric, and there are "
                "several objectives"
            ),
        ),
        (
            "objectives: {a: min, b: max}\n  target: 0.5",
            "5:11: sweep.target: cannot be combined with objectives: there is no single best trial",
        ),
        (
            "objectives: {a: min, b: max}\n  patience: 5",
            "5:13: sweep.patience: cannot be combined with objectives: there is no single best trial",
        ),
        (
            "max_cost: 5\n  price: {currency: EUR}",
            "4:13: sweep.max_cost: needs a price above 0: write for example price: {cpu_hour: 0.04, gpu_hour: 2.5}",
        ),
        (
            "resource: train/tokens",
            (
                "4:13: sweep.resource: got 'train/tokens'; asha needs max_resource with it, how much of it a whole "
                "trial takes"
            ),
        ),
        ("constraints: {validation/loss: {}}", "4:34: sweep.constraints.validation/loss: write min, max or both"),
        (
            "sampler: tpr",
            (
                "4:12: sweep.sampler: got 'tpr'; tpe, gp, random, grid, qmc, nsga2, or the import string of an Optuna "
                "sampler, package.module:Class; did you mean tpe?"
            ),
        ),
        ("sampler: qmc\n  sampler_args: {a: 1}", "5:17: sweep.sampler_args: sampler qmc takes none"),
        (
            "sampler: a.b:C\n  sampler_args: {seed: 1}",
            "5:17: sweep.sampler_args: a sampler is seeded by sweep.seed; remove seed",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_one_problem(write, problems, text, expected):
    write("a.yaml", f"sweep:\n  {text}\n", head=True)
    assert problems() == [f"a.yaml:{expected}"]


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("train.lr: 5.0", "5:20: sweep.enqueue[1].train.lr: got 5.0; 0.0001 to 0.1"),
        ("train.lr: '0.01'", "5:20: sweep.enqueue[1].train.lr: got '0.01' (text); 0.0001 to 0.1"),
        ("train.epochs: 2.5", "5:24: sweep.enqueue[1].train.epochs: got 2.5; a whole number from 2 to 8"),
        ("train.epochs: true", "5:24: sweep.enqueue[1].train.epochs: got true; a whole number from 2 to 8"),
        ("train.weight_decay: 0.3", "5:30: sweep.enqueue[1].train.weight_decay: got 0.3; 0.0 to 1.0 in steps of 0.25"),
        ("train.optimizer: adamw", "5:27: sweep.enqueue[1].train.optimizer: got 'adamw' (text); one of 'sgd', 'adam'"),
        ("train.optimizer: [sgd]", "5:27: sweep.enqueue[1].train.optimizer: got a list; one of 'sgd', 'adam'"),
        (
            "train.momentum: 0.6",
            (
                "5:26: sweep.enqueue[1].train.momentum: exists only where train.optimizer is 'sgd'; "
                "here it is left out, which leaves it to chance"
            ),
        ),
        (
            "train.momentum: 0.6, train.optimizer: adam",
            "5:26: sweep.enqueue[1].train.momentum: exists only where train.optimizer is 'sgd'; here it is 'adam'",
        ),
        (
            "train.lrr: 1",
            "5:10: sweep.enqueue[1].train.lrr: 'lrr' is not a field of train; did you mean 'train.lr'?",
        ),
        (
            "recipe.config.x: 1",
            (
                "5:27: sweep.enqueue[1].recipe.config.x: is not in the space; known: train.lr, train.epochs, "
                "train.weight_decay, train.optimizer, train.momentum"
            ),
        ),
        ("", "5:9: sweep.enqueue[1]: is empty; write at least one key of the space with its value"),
    ],
)
def test_a_start_point_must_lie_in_the_space(write, problems, point, expected):
    write(
        "a.yaml",
        f"sweep:\n  enqueue: [{{train.lr: 0.1}},\n        {{{point}}}]\n  {SPACE}",
        head=True,
    )
    assert problems() == [f"a.yaml:{expected}"]


def test_start_points_that_lie_in_the_space_are_taken(write):
    starts = "[{train.lr: 0.1, train.epochs: 8}, {train.momentum: 0.9, train.optimizer: sgd}]"
    write("a.yaml", f"sweep:\n  enqueue: {starts}\n  {SPACE}", head=True)
    found = load("a.yaml").spec
    assert found.sweep.enqueue == [
        {"train.lr": 0.1, "train.epochs": 8},
        {"train.momentum": 0.9, "train.optimizer": "sgd"},
    ]
    write("b.yaml", dump(found))
    assert load("b.yaml").spec == found
    assert ProjectSpec.model_validate(found.to_dict()) == found


def test_more_start_points_than_trials_are_refused(write, problems):
    write(
        "a.yaml", f"sweep:\n  num_trials: 1\n  enqueue: [{{train.lr: 0.1}}, {{train.lr: 0.01}}]\n  {SPACE}", head=True
    )
    assert problems() == ["a.yaml:5:12: sweep.enqueue: got 2 start points; at most num_trials, 1"]


def test_a_grid_over_a_continuous_range_is_refused_for_each_key(write, problems):
    write("a.yaml", f"sweep:\n  sampler: grid\n  {SPACE}", head=True)
    what = "is continuous, which sampler grid cannot enumerate; write a step, an int range or categorical: [...]"
    assert problems() == [
        f"a.yaml:6:15: sweep.space.train.lr: float: [0.0001, 0.1] {what}",
        f"a.yaml:10:21: sweep.space.train.momentum: float: [0.5, 0.9] {what}",
    ]


@pytest.mark.parametrize("sampler", ["gp", "nsga2", "optuna.samplers.CmaEsSampler", "my_module:MySampler"])
def test_a_sampler_that_learns_from_complete_trials_is_not_scheduled(sampler):
    """Unless a scheduler is written; what an earlier release has recorded stays as it is."""
    found = spec(sampler=sampler)
    assert found.sweep.scheduler == "none"
    assert ProjectSpec.model_validate(found.to_dict()) == found
    assert spec(sampler=sampler, scheduler="asha").sweep.scheduler == "asha"


def test_a_generation_is_as_large_as_optunas():
    """Of NSGA-II; the other samplers model from the ninth trial on."""
    assert spec(sampler="nsga2").sweep.startup_trials == 50
    assert spec(sampler="nsga2", startup_trials=8).sweep.startup_trials == 8
    assert spec(sampler="gp").sweep.startup_trials == spec().sweep.startup_trials == 8


def test_several_objectives_are_not_scheduled():
    """Unless a scheduler is asked for, none is the default with them; also when the spec is written and read again."""
    found = spec(objectives={"a": "min", "b": "max"})
    assert found.sweep.scheduler == "none"
    assert load_data(found.to_dict()).spec == found
    assert spec().sweep.scheduler == "asha"
    assert spec(objectives={}).sweep.scheduler == "asha"


@pytest.mark.parametrize(
    "sweep",
    [
        {"resource": "train/tokens", "max_resource": 1e6},
        {"resource": "train/tokens", "scheduler": "median"},
        {"max_cost": 5, "price": {"gpu_hour": 2.5}},
        {"sampler": "nsga2"},
        {"sampler": "grid", "space": {"train.lr": {"float": [0.1, 0.1]}, "train.momentum": {"categorical": [0.5]}}},
    ],
)
def test_what_goes_together_is_taken(sweep):
    assert spec(**sweep)


def test_a_spec_made_in_python_is_held_to_the_same_rules():
    with pytest.raises(ValueError, match="needs a price above 0"):
        ProjectSpec.model_validate({"project": {"name": "a"}, "recipe": {"import": "m:C"}, "sweep": {"max_cost": 1}})


def test_objectives_are_the_one_metric_or_as_written():
    assert spec().objectives == (Objective("validation/loss", "min"),)
    assert spec(metric="validation/auc", mode="max").objectives == (Objective("validation/auc", "max"),)
    several = spec(objectives={"validation/loss": "min", "validation/auc": "max"})
    assert several.objectives == (Objective("validation/loss", "min"), Objective("validation/auc", "max"))
    assert several.sweep.scheduler == "none"


@pytest.mark.parametrize(
    ("sweep", "overrides", "expected"),
    [
        ({}, ["train.epochs=7"], 7.0),
        ({"resource": "step"}, ["train.max_steps=300"], 300.0),
        ({"resource": "step"}, [], math.inf),
        ({"resource": "train/tokens", "max_resource": 1e6}, [], 1e6),
        ({"max_resource": 3}, ["train.epochs=7"], 3.0),
        ({"space": {"train.epochs": {"int": [2, 9]}}}, [], 9.0),
        ({"space": {"train.epochs": {"categorical": [4, 2]}}}, [], 4.0),
        ({"resource": "step", "space": {"train.max_steps": {"categorical": [4, None]}}}, [], math.inf),
    ],
)
def test_a_whole_trial_takes_what_the_longest_may(sweep, overrides, expected):
    assert spec(*overrides, **sweep).trial_length == expected


def test_an_argument_of_the_optimizer_can_be_searched():
    """By its name below the field that holds arguments; a field that holds none has nothing below it."""
    space = {"train.optimizer_args.eps": {"float": [1e-9, 1e-6], "log": True}}
    trial = bind(load_data({**TINY, "sweep": {"space": space}})).with_params({"train.optimizer_args.eps": 1e-7})
    assert trial.spec.train.optimizer_args == {"eps": 1e-7}
    with pytest.raises(ConfigError, match="eps"):
        bind(load_data({**TINY, "sweep": {"space": {"train.lr.eps": {"float": [0, 1]}}}}))
