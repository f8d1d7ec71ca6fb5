"""A sweep that is extended goes on from what it knows, which is worth no less than beginning again at random."""

from __future__ import annotations

from statistics import median

import optuna

from raymlops.config.space import parse_distribution
from raymlops.config.sweep import SweepSection
from raymlops.records import Objective
from raymlops.tuning.study.trials import Trials

LOSS = (Objective("validation/loss", "min"),)
SPACE = {f"recipe.config.x{index}": parse_distribution({"float": [-1, 1]}) for index in range(3)}


def study():
    return optuna.create_study(storage=optuna.storages.InMemoryStorage())


def swept(kept, *, sampler, seed, num_trials):
    """Run a sweep on a study up to so many trials, of a smooth function, and return the best of the last 16."""
    section = SweepSection(space=SPACE, sampler=sampler, seed=seed)
    trials = Trials(kept, section=section, objectives=LOSS)
    while trials.asked < num_trials:
        trial = trials.ask()
        loss = sum((value - 0.3) ** 2 for value in trial.params.values())
        metrics = {"validation/loss": loss}
        trials.report(trial.number, epoch=1, value=loss, metrics=metrics, best_metrics=metrics)
        trials.tell(trial.number, "complete")
    trials.flush()
    return min(record.value for record in trials.records[-16:])


def test_sixteen_more_are_no_worse_than_sixteen_at_random_in_the_median_of_ten_seeds():
    extended, fresh = [], []
    for seed in range(10):
        kept = study()
        swept(kept, sampler="tpe", seed=seed, num_trials=16)
        extended.append(swept(kept, sampler="tpe", seed=seed, num_trials=32))
        # Numbers of its own: another seed, so that the first of them are not those of the sweep itself.
        fresh.append(swept(study(), sampler="random", seed=seed + 100, num_trials=16))
    assert median(extended) <= median(fresh)


def test_an_extended_sweep_draws_what_a_longer_one_would_have_drawn():
    kept, whole = study(), study()
    swept(kept, sampler="tpe", seed=3, num_trials=12)
    swept(kept, sampler="tpe", seed=3, num_trials=16)
    swept(whole, sampler="tpe", seed=3, num_trials=16)
    assert [trial.params for trial in kept.trials] == [trial.params for trial in whole.trials]
