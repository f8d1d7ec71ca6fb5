"""A sampler of the user's is tried before a sweep starts."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from raymlops.config.space import parse_distribution
from raymlops.config.sweep import SweepSection
from raymlops.errors import UsageError
from raymlops.records import Objective
from raymlops.tuning.study.sampler_trial import draws, try_sampler

LOSS = (Objective("validation/loss", "min"),)
BOTH = (*LOSS, Objective("latency_ms", "min"))
SPACE = {
    "train.lr": parse_distribution({"float": [1e-5, 1e-1], "log": True}),
    "train.momentum": parse_distribution({"float": [0.5, 0.99]}),
    "train.optimizer": parse_distribution({"categorical": ["sgd", "adamw"]}),
}


def tried(sampler, *, objectives=LOSS, **args):
    try_sampler(SweepSection(space=SPACE, sampler=sampler, sampler_args=args), objectives=objectives)


@pytest.mark.parametrize(
    ("sampler", "args"),
    [
        ("own_samplers:Good", {"share": 0.5}),
        ("own_samplers.Good", {}),
        ("own_samplers:made", {"gamma": 0.1}),
        ("optuna.samplers.TPESampler", {"multivariate": True}),
        ("optuna.samplers.NSGAIIISampler", {"population_size": 4}),
        ("tpe", {"n_ei_candidates": 7}),
    ],
)
def test_a_sampler_that_is_a_function_of_history_and_seed_is_taken(sampler, args):
    tried(sampler, **args)


@pytest.mark.parametrize(
    ("sampler", "args", "message"),
    [
        ("no_such_module:X", {}, "sweep.sampler 'no_such_module:X': there is no module 'no_such_module'"),
        ("own_samplers:Godo", {}, "module own_samplers has no attribute 'Godo'"),
        ("own_samplers:NUMBER", {}, "sweep.sampler own_samplers:NUMBER is a int, not an Optuna sampler"),
        ("own_samplers:NoSampler", {}, "gives a NoSampler, not an optuna.samplers.BaseSampler"),
        ("own_samplers:Good", {"shore": 1}, "cannot be made with seed and sweep.sampler_args: TypeError"),
        ("own_samplers:SeedTaker", {}, "cannot be made with seed and sweep.sampler_args: TypeError"),
        ("own_samplers:Nested", {}, "cannot be made with seed and sweep.sampler_args: RuntimeError: no licence"),
        ("own_samplers:Counting", {}, "draws the same point for each trial"),
        ("own_samplers:Unseeded", {}, "draws other points from the same history and seed"),
        ("own_samplers:Learning", {}, "has an after_trial of its own, which is not called"),
        ("own_samplers:Lacking", {}, "needs the package no_such_package, which is not installed"),
        ("optuna.samplers.QMCSampler", {}, "counts its points"),
        ("tpe", {"n_ei": 7}, "sweep.sampler tpe cannot be made with seed and sweep.sampler_args: TypeError"),
    ],
)
def test_what_is_no_sampler_or_would_not_resume_is_refused(sampler, args, message):
    with pytest.raises(UsageError) as caught:
        tried(sampler, **args)
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.skipif(find_spec("cmaes") is None, reason="needs the package cmaes")
def test_cma_es_takes_one_objective():
    tried("optuna.samplers.CmaEsSampler", n_startup_trials=3)
    with pytest.raises(UsageError, match=r"cannot draw from sweep.space: ValueError: .*multi-objective"):
        tried("optuna.samplers.CmaEsSampler", objectives=BOTH)


@pytest.mark.parametrize(
    ("sampler", "args", "expected"),
    [
        ("tpe", {"n_ei_candidates": 7}, 22),
        ("tpe", {"n_startup_trials": 5}, 12),
        ("gp", {"deterministic_objective": True}, 22),
        ("nsga2", {"mutation_prob": 0.5}, 22),
        ("nsga2", {"population_size": 30}, 32),
        ("own_samplers:Good", {}, 12),
        ("optuna.samplers.TPESampler", {"n_startup_trials": 500}, 52),
        ("optuna.samplers.NSGAIISampler", {}, 52),
    ],
)
def test_as_many_points_are_drawn_as_it_takes_a_sampler_to_learn(sampler, args, expected):
    section = SweepSection(space=SPACE, sampler=sampler, sampler_args=args, startup_trials=20)
    assert draws(section, LOSS) == expected


def test_a_genetic_sampler_is_tried_beyond_its_first_generation():
    with pytest.raises(UsageError, match="draws other points from the same history and seed"):
        tried("own_samplers:Restless")
