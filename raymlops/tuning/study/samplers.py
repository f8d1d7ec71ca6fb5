"""Optuna samplers: a new one for each trial, seeded from the sweep's seed and the trial's number.

A sampler that lives for a whole sweep has a random state that dies with its process. A new one for each trial is a
function of the study's history alone, so that a resumed sweep draws what an uninterrupted one would have drawn. An
imported sampler must be one too: what it has to remember it stores in the study, as Optuna's CMA-ES does.

CMA-ES is not built in: Optuna stores its state as a pickle in the database, and who can write there runs code in the
driver.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from typing import TYPE_CHECKING, Any

from optuna.samplers import (
    BaseGASampler,
    BaseSampler,
    BruteForceSampler,
    GPSampler,
    GridSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
)

from raymlops.config.sweep import SAMPLERS
from raymlops.errors import RecipeImportError, UsageError, describe
from raymlops.recipe import described
from raymlops.recipe_import import import_object
from raymlops.tuning.study.storage import quiet_optuna
from raymlops.tuning.study.tpe import TPE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.config.sweep import SweepSection
    from raymlops.records import Objective


def sampler_of(section: SweepSection, *, objectives: Sequence[Objective], number: int) -> _Seeded:
    """Return the sampler that draws trial ``number``.

    - ``tpe``: multivariate, which models interactions, and grouped, which allows that with conditional parameters; with
      several objectives each parameter independently, as Optuna advises. Running trials count as poor ones, so that
      trials drawn at the same time differ.
    - ``gp``: learns from complete trials alone, and draws conditional parameters at random.
    - ``nsga2``: a generation has ``startup_trials`` trials; the first one is random.
    - ``random``; also ``grid`` and ``qmc``, whose points are fixed.
    - what an import string names, called with a seed.

    ``sampler_args`` replace these options.

    Raises:
        UsageError: it cannot be imported or made, or is no sampler.
    """
    make = functools.partial(_sampler, section, several=len(objectives) > 1)
    return _Seeded(make, f"{section.seed}:{number}")


def _sampler(section: SweepSection, seed: int, *, several: bool) -> BaseSampler:
    try:
        make, options = _class_of(section, several=several)
        with quiet_optuna():
            sampler = make(seed=seed, **{**options, **section.sampler_args})
    except UsageError:
        raise
    except Exception as error:  # of a user's class
        raise UsageError(
            f"sweep.sampler {section.sampler} cannot be made with seed and sweep.sampler_args: {describe(error)}",
            hint="A new one is created for each trial, with its own seed.",
        ) from error
    if section.sampler not in SAMPLERS:
        _check_imported(sampler, section.sampler)
    return _ordered(sampler) if isinstance(sampler, BaseGASampler) else sampler


def _check_imported(sampler: Any, name: str) -> None:
    if not isinstance(sampler, BaseSampler):
        raise UsageError(
            f"sweep.sampler {name} gives {described(sampler)}, not an optuna.samplers.BaseSampler",
            hint="Name its class, or a function that takes a seed and returns one: package.module:Class.",
        )
    if (ours := next((ours for kind, ours in _OURS.items() if isinstance(sampler, kind)), None)) is not None:
        raise UsageError(
            f"sweep.sampler {name} counts its points where a draw that is repeated after a crash is another point",
            hint=f"Use sampler: {ours}, whose points are a function of the seed and the trial's number.",
        )
    if not type(sampler).after_trial.__module__.startswith("optuna."):
        raise UsageError(
            f"sweep.sampler {name} has an after_trial of its own, which is not called: a trial may end in another "
            "process than the one that drew it",
            hint="Let it learn from the study's trials where it draws.",
        )


def _class_of(section: SweepSection, *, several: bool) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the class of a sampler, and its options."""
    startup = section.startup_trials
    if section.sampler == "tpe":
        joint = {"multivariate": not several, "group": not several}
        if section.sampler_args.get("multivariate") is False:
            joint["group"] = False
        return TPE, {"n_startup_trials": startup, "constant_liar": True, **joint}
    if section.sampler == "gp":
        return GPSampler, {"n_startup_trials": startup, "warn_independent_sampling": False}
    if section.sampler == "nsga2":
        return NSGAII, {"population_size": max(2, startup)}
    if section.sampler in SAMPLERS:
        return RandomSampler, {}
    module, _, name = section.sampler.replace(":", ".").rpartition(".")
    try:
        found = import_object(f"{module}:{name}", what="sweep.sampler")
    except RecipeImportError as error:
        raise UsageError(error.message, hint=error.hint) from error
    if not callable(found):
        raise UsageError(
            f"sweep.sampler {section.sampler} is {described(found)}, not an Optuna sampler",
            hint="Name its class, or a function that takes a seed and returns one: package.module:Class.",
        )
    # Optuna's warn at every trial of what is said once, in the documentation.
    known = inspect.signature(found).parameters
    return found, {name: False for name in ("warn_independent_sampling",) if name in known}


def _ordered(sampler: BaseGASampler) -> BaseGASampler:
    """Return a genetic sampler that has the parents of a generation in the same order for every trial: by number.

    In Optuna (5.0) the trial that selects the parents has them in another order than later trials, which read the
    selection from the study; another order is another random draw.
    """
    select = sampler.select_parent
    sampler.select_parent = lambda study, generation: sorted(select(study, generation), key=lambda trial: trial.number)
    return sampler


_OURS = {GridSampler: "grid", BruteForceSampler: "grid", QMCSampler: "qmc"}


class NSGAII(NSGAIISampler):  # type: ignore[misc]
    """Optuna's. The class's name is part of the stored key."""


class _Seeded(BaseSampler):  # type: ignore[misc]
    """Draws with one random stream for the parameters drawn jointly and one for each other parameter.

    A trial whose driver died during its draw has some of its parameters already. With a single stream the others would
    get the random numbers of the first ones.
    """

    def __init__(self, make: Callable[[int], BaseSampler], name: str) -> None:
        self._make = make
        self._name = name
        self._joint = make(self._seed(""))

    @property
    def population_size(self) -> int:
        """Return the size of a generation of a genetic sampler; 0 for any other."""
        return int(self._joint.population_size) if isinstance(self._joint, BaseGASampler) else 0

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
