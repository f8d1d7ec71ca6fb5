"""Optuna samplers: a new one for each trial, seeded from the sweep's seed and the trial's number.

A sampler that lives for a whole sweep has a random state that dies with its process. A new one for each trial is a
function of the study's history alone, so that a resumed sweep draws what an uninterrupted one would have drawn.

CMA-ES is not offered: Optuna stores its state as a pickle in the database, and unpickling it could run code.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from raymlops.tuning.study.storage import quiet_optuna

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.config.sweep import SweepSection
    from raymlops.records import Objective


def sampler_of(section: SweepSection, *, objectives: Sequence[Objective], number: int) -> BaseSampler:
    """Return the sampler that draws trial ``number``.

    - ``tpe``: multivariate, which models interactions, and grouped, which allows that with conditional parameters; with
      several objectives each parameter independently, as Optuna advises. Running trials count as poor ones, so that
      trials drawn at the same time differ.
    - ``gp``: learns from complete trials alone, and draws conditional parameters at random.
    - ``nsga2``: a generation has ``startup_trials`` trials; the first one is random.
    - ``random``; also ``grid`` and ``qmc``, whose points are fixed.
    """
    make = functools.partial(_sampler, section, several=len(objectives) > 1)
    return _Seeded(make, f"{section.seed}:{number}")


def _sampler(section: SweepSection, seed: int, *, several: bool) -> BaseSampler:
    if section.sampler == "tpe":
        with quiet_optuna():
            return TPESampler(
                seed=seed,
                n_startup_trials=section.startup_trials,
                multivariate=not several,
                group=not several,
                constant_liar=True,
            )
    if section.sampler == "gp":
        return GPSampler(seed=seed, n_startup_trials=section.startup_trials, warn_independent_sampling=False)
    if section.sampler == "nsga2":
        return NSGAII(seed=seed, population_size=max(2, section.startup_trials))
    return RandomSampler(seed=seed)


class NSGAII(NSGAIISampler):  # type: ignore[misc]
    """Optuna's, with the parents of a generation in the same order for every trial.

    In Optuna (5.0) the trial that selects the parents has them in another order than later trials, which read the
    selection from the study; another order is another random draw. The class's name is part of the stored key.
    """

    def select_parent(self, study: Any, generation: int) -> list[Any]:
        """Return the parents of a generation, by number."""
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)


class _Seeded(BaseSampler):  # type: ignore[misc]
    """Draws with one random stream for the parameters drawn jointly and one for each other parameter.

    A trial whose driver died during its draw has some of its parameters already. With a single stream the others would
    get the random numbers of the first ones.
    """

    def __init__(self, make: Callable[[int], BaseSampler], name: str) -> None:
        self._make = make
        self._name = name
        self._joint = make(self._seed(""))

    def _seed(self, param_name: str) -> int:
        digest = hashlib.sha256(f"{self._name}:{param_name}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        space: dict[str, Any] = self._joint.infer_relative_search_space(study, trial)
        return space

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
        # GP (Optuna 5.0) stores its draw in "gp:relative_params:0" and then counts the trial as a running one. Delete
        # what an interrupted draw has stored, so that it is repeated exactly.
        for key in trial.system_attrs:
            if ":relative_params:" in key:
                study._storage.set_trial_system_attr(trial._trial_id, key, "")  # noqa: SLF001 - as samplers do
        params: dict[str, Any] = self._joint.sample_relative(study, trial, search_space)
        return params

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        alone = self._make(self._seed(param_name))
        return alone.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Any, trial: Any) -> None:
        self._joint.before_trial(study, trial)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Sequence[float] | None) -> None:
        self._joint.after_trial(study, trial, state, values)
