"""TPE on arrays draws what Optuna's own TPE draws."""

from __future__ import annotations

import copy
import math
import random

import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import Trial, TrialState, create_trial

from raymlops.config.space import parse_distribution
from raymlops.config.sweep import SweepSection, Threshold
from raymlops.records import Objective
from raymlops.tuning.search_space import draw, draw_order
from raymlops.tuning.study import samplers
from raymlops.tuning.study.storage import create_study, quiet_optuna
from raymlops.tuning.study.tpe import TPE
from raymlops.tuning.study.trials import Trials
from raymlops.tuning.study.view import StudyView

SPACE = {
    "train.lr": parse_distribution({"float": [1e-5, 1e-1], "log": True}),
    "train.optimizer": parse_distribution({"categorical": ["sgd", "adamw", "lion"]}),
    "train.momentum": parse_distribution({"float": [0.5, 0.99], "when": {"train.optimizer": "sgd"}}),
    "recipe.config.hidden": parse_distribution({"int": [4, 64]}),
    "recipe.config.width": parse_distribution({"int": [1, 1024], "log": True}),
    "recipe.config.rate": parse_distribution({"float": [0, 1], "step": 0.25}),
}
OPTIONS = {"multivariate": True, "group": True, "constant_liar": True, "n_startup_trials": 5}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("options", [OPTIONS, {**OPTIONS, "group": False}, {"multivariate": False}], ids=str)
def test_a_draw_is_the_one_of_optuna_from_any_history(direction, options):
    """Complete, pruned, failed, infeasible and running trials, conditional parameters, and values that are equal."""
    for seed in range(6):
        study, rng = optuna.create_study(direction=direction), random.Random(seed)
        for _ in range(rng.randrange(60)):
            study.add_trial(_trial(rng))
        with quiet_optuna():
            theirs = _drawn(copy.deepcopy(study), TPESampler(seed=seed, **options))
            ours = _drawn(study, TPE(seed=seed, **options), view=StudyView(study))
        assert ours == theirs


def _drawn(study, sampler, *, view=None):
    study.sampler = sampler
    if view is None:
        trial_id = study._storage.create_new_trial(study._study_id)
        return draw(Trial(study, trial_id), SPACE, order=draw_order(SPACE))
    study._storage = view
    with view.draft(len(study.trials), None) as draft:
        return draw(Trial(study, draft), SPACE, order=draw_order(SPACE))


def _trial(rng):
    params = {
        "train.lr": 10 ** rng.uniform(-5, -1),
        "train.optimizer": rng.choice(["sgd", "adamw", "lion"]),
        "recipe.config.hidden": rng.randint(4, 64),
        "recipe.config.width": rng.randint(1, 1024),
        "recipe.config.rate": rng.choice([0.0, 0.25, 0.5, 0.75, 1.0]),
    }
    if params["train.optimizer"] == "sgd":
        params["train.momentum"] = rng.uniform(0.5, 0.99)
    state = rng.choice([TrialState.COMPLETE] * 4 + [TrialState.PRUNED] * 2 + [TrialState.FAIL, TrialState.RUNNING])
    probe = optuna.create_study().ask(fixed_distributions=None)
    drawn = draw(_Fixed(probe, params), SPACE, order=draw_order(SPACE))
    curve = [rng.choice([rng.random(), 0.5, math.nan]) for _ in range(rng.randrange(3))]
    attributes = {"constraints:x": rng.choice([-1.0, 0.5, 2.0])} if rng.random() < 0.3 else {}
    return create_trial(
        state=state,
        value=rng.choice([0.1, 0.2, rng.random()]) if state == TrialState.COMPLETE else None,
        params=drawn,
        distributions=probe.distributions,
        intermediate_values=dict(enumerate(curve)),
        system_attrs=attributes if state.is_finished() else {},
    )


class _Fixed:
    """A trial that suggests what it is given, and knows by which distribution."""

    def __init__(self, trial, params):
        self._trial = trial
        trial._fixed_params = params

    def __getattr__(self, name):
        return getattr(self._trial, name)


@pytest.mark.parametrize("objectives", [("min",), ("max",), ("min", "max")], ids=str)
def test_a_sweep_draws_what_it_would_draw_with_optunas_sampler(objectives, monkeypatch):
    """With three trials at a time, some pruned, failed, rejected or against a constraint."""
    ours = _swept(objectives)
    monkeypatch.setattr(samplers, "TPE", TPESampler)
    assert ours == _swept(objectives)


def _swept(modes):
    objectives = tuple(Objective(f"m{index}", mode) for index, mode in enumerate(modes))
    section = SweepSection(space=SPACE, startup_trials=4, constraints={"cost": Threshold(max=0.8)})
    rng = random.Random(1)
    with quiet_optuna():
        study = create_study(InMemoryStorage(), "s", objectives=objectives)
        trials = Trials(study, section=section, objectives=objectives)
        for _ in range(40):
            while len(trials.open) < 3:
                trials.ask()
            number = rng.choice(list(trials.open))
            if rng.random() < 0.1:
                trials.refuse(number, "too wide")
                continue
            metrics = {"cost": rng.random(), **{objective.metric: rng.random() for objective in objectives}}
            trials.report(number, epoch=1, value=metrics["m0"], metrics=metrics, best_metrics=metrics)
            trials.tell(number, rng.choice(["complete", "complete", "pruned", "failed"]))
    return [trial.params for trial in study.trials]
