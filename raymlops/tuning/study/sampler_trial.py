"""Try a sampler of the user's on a study in memory, before a sweep starts.

Owns what such a sampler must do: draw from the space, draw the same from the same history and seed, and not depend on
what it remembers itself, since each trial has a new one.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from raymlops.config.sweep import SAMPLERS
from raymlops.errors import UsageError, describe
from raymlops.tuning.study.samplers import sampler_of
from raymlops.tuning.study.storage import create_study, quiet_optuna
from raymlops.tuning.study.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.sweep import SweepSection
    from raymlops.records import Objective

_FEWEST = 12
"""More than the random ones with which Optuna's samplers begin, by default."""
_MOST = 52
"""So that the trial stays short."""


def try_sampler(section: SweepSection, *, objectives: Sequence[Objective]) -> None:
    """Draw some trials with an imported sampler, or with ``sampler_args``.

    Raises:
        UsageError: it cannot be imported, made or used for this space; or it is not a function of history and seed.
    """
    if section.sampler in SAMPLERS and not section.sampler_args:
        return
    name = f"sweep.sampler {section.sampler}"
    try:
        once, again = (_drawn(section, objectives) for _ in range(2))
    except UsageError:
        raise
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{name} needs the package {error.name}, which is not installed", hint=f"pip install {error.name}"
        ) from error
    except Exception as error:  # of a user's class
        raise UsageError(
            f"{name} cannot draw from sweep.space: {describe(error)}",
            hint="See its documentation for the parameters and objectives that it takes.",
        ) from error
    if once != again:
        raise UsageError(
            f"{name} draws other points from the same history and seed",
            hint="Let it take its random numbers from the seed that it is made with, so that a sweep can be resumed.",
        )
    several = any(len(each.choices) > 1 or each.low != each.high for each in section.space.values())
    if several and all(params == once[0] for params in once):
        raise UsageError(
            f"{name} draws the same point for each trial",
            hint="A new one is created for each trial, with its own seed: what it has to remember it must keep in the "
            "study, as system attributes of trials.",
        )


def draws(section: SweepSection, objectives: Sequence[Objective]) -> int:
    """Return how many points to draw: two more than a sampler draws at random before it learns, as far as is known."""
    sampler = sampler_of(section, objectives=objectives, number=0)
    startup = section.sampler_args.get("n_startup_trials", section.startup_trials if section.sampler in SAMPLERS else 0)
    known = [each for each in (startup, sampler.population_size) if isinstance(each, int)]
    return min(max(_FEWEST, *(each + 2 for each in known)), _MOST)


def _drawn(section: SweepSection, objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    from optuna.storages import InMemoryStorage

    count = draws(section, objectives)
    section = section.model_copy(update={"enqueue": [], "num_trials": count})
    rng = random.Random(section.seed)  # noqa: S311 - not for secrets
    with quiet_optuna():
        study = create_study(InMemoryStorage(), "s", objectives=objectives)
        trials = Trials(study, section=section, objectives=objectives)
        for _ in range(count):
            number = trials.ask().number
            metrics = {name: rng.random() for name in (*section.constraints, *(each.metric for each in objectives))}
            value = metrics[objectives[0].metric]
            trials.report(number, epoch=1, value=value, metrics=metrics, best_metrics=metrics)
            trials.tell(number, "complete")
        trials.flush()
    return [record.params for record in trials.records]
