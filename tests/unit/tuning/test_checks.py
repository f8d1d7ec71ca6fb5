"""What a sweep refuses before anything starts."""

from __future__ import annotations

import pytest
from tiny import Tiny

from raymlops.config.load import load_data
from raymlops.config.train import TrainSection
from raymlops.errors import UsageError
from raymlops.project import bind
from raymlops.tuning.checks import check

LR = {"train.lr": {"float": [0.1, 0.2]}}
TWO = {"validation/loss": "min", "validation/auc": "max"}


def project(**sweep):
    return bind(load_data({"project": {"name": "p"}, "recipe": {"import": Tiny}, "sweep": sweep}))


def test_an_empty_space_is_refused():
    with pytest.raises(UsageError, match=r"sweep\.space is empty"):
        check(project())


def test_a_metric_of_its_own_needs_its_mode():
    space = {"train.lr": {"float": [0.1, 0.2]}}
    with pytest.raises(UsageError, match=r"sweep\.mode is not set"):
        check(project(space=space, metric="validation/auc"))
    check(project(space=space, metric="validation/auc", mode="max"))


def test_a_length_in_steps_alone_is_counted_in_steps():
    """How many epochs that takes is only known with the data."""
    found = project(space=LR)
    steps = found.with_train(TrainSection(max_steps=9))
    with pytest.raises(UsageError, match=r"'epoch', and the length of a whole trial is not set.*\n.*resource: step"):
        check(steps)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"max_gpu_hours": 2}, r"max_gpu_hours is 2, but trials reserve no GPU"),
        ({"max_cost": 2, "price": {"gpu_hour": 3}}, r"max_cost is 2, but trials cost nothing"),
        ({"resource": "step"}, r"the length of a whole trial is not set, which asha needs"),
        ({"grace_period": 6}, r"grace_period is 6, longer than a whole trial: 5 \(epoch\)"),
        ({"grace_period": 6, "scheduler": "median"}, r"so median would never stop one"),
        (
            {"target": 0.2, "constraints": {"validation/loss": {"min": 0.3}}},
            r"target is 0\.2, but sweep\.constraints requires validation/loss to be at least 0\.3",
        ),
        ({"sampler": "grid", "space": {"train.seed": {"int": [0, 200_000]}}}, r"more than 100,000 points"),
    ],
)
def test_what_nothing_can_reach_is_refused(sweep, message):
    with pytest.raises(UsageError, match=message):
        check(project(**{"space": LR, **sweep}))


@pytest.mark.parametrize(
    "sweep",
    [
        {"objectives": TWO},
        {"grace_period": 5},
        {"grace_period": 6, "scheduler": "none"},
        {"resource": "step", "scheduler": "median"},
        {"target": 0.2, "constraints": {"validation/loss": {"max": 0.3}, "validation/auc": {"min": 0.9}}},
        {"max_cost": 2, "price": {"cpu_hour": 3}},
    ],
)
def test_what_can_be_reached_is_taken(sweep):
    check(project(**{"space": LR, **sweep}))


def plain(**sweep):
    recipe = {"import": "plain_recipe:Plain", "config": {"width": 64}}
    return bind(load_data({"project": {"name": "p"}, "recipe": recipe, "sweep": sweep}))


def test_a_space_that_holds_no_point_is_refused_with_the_commonest_reason():
    """The width is at most 4, and must be at least ``even``, which is 6: each end alone is a good value."""
    space = {"recipe.config.width": {"int": [1, 4]}, "recipe.config.even": {"categorical": [6]}}
    with pytest.raises(UsageError) as caught:
        check(plain(space=space))
    assert "all 64 random ones are rejected, 64 of them with: recipe.config: width must be at least even" in str(
        caught.value
    )
    assert "for example recipe.config.width=" in str(caught.value)


def test_a_space_that_holds_some_points_is_taken():
    space = {"recipe.config.width": {"int": [1, 6]}, "recipe.config.even": {"categorical": [6]}}
    check(plain(space=space))


@pytest.mark.parametrize("seed", range(8))
def test_of_a_grid_one_point_that_holds_is_enough(seed):
    """64 draws by chance miss one in 64 in 36 of 100 sweeps."""
    space = {"recipe.config.width": {"int": [1, 64]}, "recipe.config.even": {"categorical": [64]}}
    check(plain(space=space, sampler="grid", num_trials=64, seed=seed))


@pytest.mark.parametrize(
    ("sweep", "which"),
    [
        ({"sampler": "grid"}, "accepts no point of sampler grid: all 4 are rejected"),
        ({"sampler": "qmc"}, "accepts no point of sampler qmc: all 16 are rejected"),
    ],
)
def test_points_that_are_fixed_in_advance_are_looked_at_themselves(sweep, which):
    space = {"recipe.config.width": {"int": [1, 4]}, "recipe.config.even": {"categorical": [6]}}
    with pytest.raises(UsageError) as caught:
        check(plain(space=space, **sweep))
    assert which in caught.value.message
    assert "width must be at least even" in caught.value.message


def test_a_grid_whose_points_are_all_start_points_has_no_other_to_look_at():
    space = {"recipe.config.width": {"categorical": [6]}, "recipe.config.even": {"categorical": [6]}}
    check(plain(space=space, sampler="grid", enqueue=[{"recipe.config.width": 6, "recipe.config.even": 6}]))


def test_a_start_point_that_the_recipe_refuses_is_named():
    space = {"recipe.config.width": {"int": [1, 8]}, "recipe.config.even": {"categorical": [2, 6]}}
    bad = {"recipe.config.width": 4, "recipe.config.even": 6}
    with pytest.raises(UsageError, match=r"sweep\.enqueue\[1\] is rejected: recipe\.config: width must be at least"):
        check(plain(space=space, enqueue=[{"recipe.config.width": 8, "recipe.config.even": 6}, bad]))
    # What is left out is drawn, and may make it hold.
    check(plain(space=space, enqueue=[{"recipe.config.width": 1}]))
