"""Points that need no sampler follow from space, seed and index alone."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice

import pytest

from raymlops.config.space import parse_distribution
from raymlops.config.sweep import SweepSection
from raymlops.errors import UsageError
from raymlops.tuning.search_space import MAX_GRID, at, grid, how_many, later_points, num_trials, point

SGD = {"float": [0.5, 0.9], "step": 0.2, "when": {"train.optimizer": "sgd"}}
CONDITIONAL = {"train.momentum": SGD, "train.optimizer": {"categorical": ["sgd", "adam"]}}
MIXED = {
    "train.lr": {"float": [1e-4, 1e-2], "log": True},
    "train.epochs": {"int": [1, 4]},
    "train.optimizer": {"categorical": ["sgd", "adam"]},
}


def sweep(**written):
    return SweepSection.model_validate(written)


def space(**written):
    return {key: parse_distribution(value) for key, value in written.items()}


def test_a_grid_holds_every_point_with_the_first_parameter_slowest():
    parameters = space(a={"int": [2, 8], "step": 3}, b={"categorical": [None, True]})
    assert grid(parameters) == [
        {"a": 2, "b": None},
        {"a": 2, "b": True},
        {"a": 5, "b": None},
        {"a": 5, "b": True},
        {"a": 8, "b": None},
        {"a": 8, "b": True},
    ]


def test_a_grid_has_each_point_once_where_a_parameter_does_not_exist():
    """With adam there is no momentum to vary: three points and one, not six."""
    assert grid({key: parse_distribution(value) for key, value in CONDITIONAL.items()}) == [
        {"train.optimizer": "sgd", "train.momentum": 0.5},
        {"train.optimizer": "sgd", "train.momentum": 0.7},
        {"train.optimizer": "sgd", "train.momentum": 0.9},
        {"train.optimizer": "adam"},
    ]


def test_steps_are_as_written():
    """0.1 + 2 * 0.1 is 0.30000000000000004 in floating point; 0.95 is beyond the last whole step."""
    assert [found["x"] for found in grid(space(x={"float": [0.1, 0.45], "step": 0.1}))] == [0.1, 0.2, 0.3, 0.4]


def test_a_range_of_one_value_is_no_continuous_one():
    assert grid(space(x={"float": [0.5, 0.5]}, y={"int": [3, 3]})) == [{"x": 0.5, "y": 3}]


def test_a_grid_that_is_too_large_says_how_large_each_parameter_is():
    """400 times 251 is 100,400."""
    with pytest.raises(UsageError, match=r"more than 100,000 points, .*: a 400, b 251"):
        grid(space(a={"int": [1, 400]}, b={"int": [0, 250]}))
    assert len(grid(space(a={"int": [1, 400]}, b={"int": [1, 250]}))) == MAX_GRID


def test_a_range_without_end_is_refused_at_once():
    with pytest.raises(UsageError, match="too many"):
        grid(space(a={"int": [0, 2**62]}))


def test_all_points_of_a_grid_come_in_an_order_that_the_seed_decides():
    section = sweep(sampler="grid", space=CONDITIONAL)
    drawn = [point(section, index) for index in range(5)]
    assert drawn[4] is None
    assert sorted(map(str, drawn[:4])) == sorted(map(str, grid(section.space)))
    orders = {
        str([point(sweep(sampler="grid", seed=seed, space=CONDITIONAL), index) for index in range(4)])
        for seed in range(9)
    }
    assert len(orders) > 1


def test_start_points_come_first_and_are_not_done_again():
    """Of the grid's four points one was a start point; a part of one leaves the grid as it is."""
    starts = [{"train.optimizer": "adam"}, {"train.momentum": 0.7, "train.optimizer": "sgd"}]
    section = sweep(sampler="grid", space=CONDITIONAL, enqueue=starts)
    drawn = [point(section, index) for index in range(5)]
    assert drawn[:2] == starts
    assert [found and found.get("train.momentum") for found in drawn[2:]].count(0.7) == 0
    assert drawn[4] is None
    assert how_many(section) == 4
    partly = sweep(sampler="grid", space=CONDITIONAL, enqueue=[{"train.optimizer": "sgd"}])
    assert how_many(partly) == 5


def test_a_start_point_has_the_type_of_its_parameter():
    """Whole numbers stand for floats in a file, and 2.0 for a whole number; what is left out is drawn."""
    parameters = MIXED | {"train.momentum": {"float": [0, 0.5]}}
    section = sweep(space=parameters, enqueue=[{"train.momentum": 0, "train.epochs": 2.0}])
    found = point(section, 0) or {}
    assert {key: repr(value) for key, value in found.items()} == {"train.epochs": "2", "train.momentum": "0.0"}


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "nsga2"])
def test_after_the_start_points_a_sampler_draws(sampler):
    section = sweep(sampler=sampler, space=MIXED, enqueue=[{"train.lr": 0.001}])
    assert [point(section, index) for index in range(2)] == [{"train.lr": 0.001}, None]
    assert how_many(section) is None


def test_a_quasi_random_point_depends_on_its_index_alone():
    """A sweep that resumes at the fifth gets the point that came fifth before, in another process too."""
    section = sweep(sampler="qmc", space=MIXED)
    there = [point(section, index) for index in range(8)]
    assert point(section, 5) == there[5]
    code = (
        "from raymlops.config.schema import SweepSection; from raymlops.tuning.search_space import point;"
        f"print(point(SweepSection.model_validate({{'sampler': 'qmc', 'space': {MIXED!r}}}), 5))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(there[5])
    assert point(sweep(sampler="qmc", seed=1, space=MIXED), 5) != there[5]


def test_quasi_random_points_are_even_over_the_space():
    """Of any 2^k first points of Sobol's each half, quarter ... of each parameter holds as many: on the log scale."""
    section = sweep(sampler="qmc", space=MIXED)
    found = [point(section, index) or {} for index in range(16)]
    assert sum(params["train.lr"] < 1e-3 for params in found) == 8
    assert [sum(params["train.epochs"] == epochs for params in found) for epochs in (1, 2, 3, 4)] == [4, 4, 4, 4]
    assert sum(params["train.optimizer"] == "sgd" for params in found) == 8


def test_quasi_random_points_keep_conditions():
    section = sweep(sampler="qmc", space=CONDITIONAL)
    found = [point(section, index) or {} for index in range(16)]
    assert all(("train.momentum" in params) is (params["train.optimizer"] == "sgd") for params in found)


def test_quasi_random_points_come_after_the_start_points():
    with_start = sweep(sampler="qmc", space=MIXED, enqueue=[{"train.lr": 0.001}])
    assert point(with_start, 1) == point(sweep(sampler="qmc", space=MIXED), 0)


@pytest.mark.parametrize(
    ("written", "share", "expected"),
    [
        ({"float": [2, 4]}, 0.25, 2.5),
        ({"float": [1e-4, 1e-2], "log": True}, 0.5, 1e-3),
        ({"float": [0, 1], "step": 0.25}, 0.99, 1.0),
        ({"float": [0, 1], "step": 0.25}, 0.19, 0.0),  # five values: each has a fifth
        ({"int": [1, 4]}, 0.5, 3),
        ({"int": [1, 4], "log": True}, 0.0, 1),  # ends are 0.5 and 4.5
        ({"int": [1, 4], "log": True}, 0.49, 1),  # 0.5 * 9^0.49 is 1.47
        ({"int": [1, 4], "log": True}, 0.51, 2),  # 0.5 * 9^0.51 is 1.53
        ({"int": [1, 4], "log": True}, 0.9999, 4),
        ({"categorical": ["a", None, 3]}, 0.34, None),
    ],
)
def test_a_share_of_the_unit_interval_is_a_share_of_the_range(written, share, expected):
    found = at(space(x=written), [share])["x"]
    assert found == pytest.approx(expected) if isinstance(expected, float) else found == expected
    assert type(found) is type(expected)


def test_random_points_lie_in_the_space_and_follow_from_the_seed():
    section = sweep(space=MIXED, seed=3)
    parameters = section.space
    found = list(islice(later_points(section), 50))
    assert found == list(islice(later_points(section), 50))
    assert all(parameters[key].can_be(value) for params in found for key, value in params.items())
    assert {params["train.epochs"] for params in found} == {1, 2, 3, 4}


def test_a_grid_may_have_fewer_points_than_there_are_trials():
    section = {"sampler": "grid", "space": {"train.epochs": {"int": [1, 5]}}}
    assert num_trials(sweep(**section)) == 5
    assert num_trials(sweep(num_trials=3, **section)) == 3
    assert num_trials(sweep()) == 16


@pytest.mark.parametrize("sampler", ["grid", "qmc", "random"])
def test_lists_are_points_as_other_choices_are(sampler):
    """A start point writes the list; every point has its JSON text."""
    space = {
        "recipe.config.sizes": parse_distribution({"categorical": [[64, 64], [128]]}),
        "recipe.config.width": parse_distribution({"int": [1, 2], "when": {"recipe.config.sizes": [[128]]}}),
    }
    start = {"recipe.config.sizes": [64, 64]}
    spec = SweepSection(space=space, sampler=sampler, enqueue=[start], num_trials=3)
    assert point(spec, 0) == {"recipe.config.sizes": "[64, 64]"}
    later = list(islice(later_points(spec), 2))
    assert all(found["recipe.config.sizes"] in {"[64, 64]", "[128]"} for found in later)
    if sampler == "grid":
        assert sorted(found["recipe.config.width"] for found in later) == [1, 2]
