"""What is valid in a sweep and hardly meant is said with what to do instead."""

from __future__ import annotations

import pytest

from raymlops.config.load import load_data
from raymlops.tuning.advice import warnings_of


def warnings(**sweep):
    space = {"train.lr": {"float": [0.1, 0.2]}}
    data = {"project": {"name": "p"}, "recipe": {"import": "a:B"}, "sweep": {"space": space, **sweep}}
    return list(warnings_of(load_data(data).spec.sweep))


@pytest.mark.parametrize("sampler", ["gp", "nsga2"])
def test_a_scheduler_starves_a_sampler_that_learns_from_complete_trials(sampler):
    (warning,) = warnings(sampler=sampler, scheduler="asha", startup_trials=4)
    assert warning.startswith(f"sweep.sampler {sampler} learns from complete trials alone")
    assert warnings(sampler=sampler, startup_trials=4) == warnings(sampler="tpe", scheduler="asha") == []


def test_a_sweep_of_one_generation_is_random():
    (warning,) = warnings(sampler="nsga2", num_trials=50)
    assert warning.startswith("sweep.num_trials is 50, and the first generation of nsga2 is 50 random trials")
    assert warnings(sampler="nsga2", num_trials=51) == warnings(sampler="nsga2", startup_trials=15) == []


@pytest.mark.parametrize(
    "one", [{"float": [0.1, 0.1]}, {"categorical": [0.1]}, {"float": [0.1, 0.2], "step": 0.5}], ids=str
)
def test_a_space_of_one_point_repeats_it(one):
    (warning,) = warnings(space={"train.lr": one})
    assert warning.startswith("sweep.space has one point, so that all 16 trials are the same")
    assert warnings(space={"train.lr": one}, sampler="grid") == []
    assert warnings(space={"train.lr": one, "train.momentum": {"float": [0.1, 0.2]}}) == []


def test_a_searched_seed_may_be_lucky():
    (warning,) = warnings(space={"train.seed": {"int": [0, 9]}})
    assert warning.startswith("train.seed is searched")
