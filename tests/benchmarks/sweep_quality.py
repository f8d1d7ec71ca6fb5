"""The best value that a sweep finds, beside plain Optuna with the same sampler, on usual test functions.

Both minimize the same function with the same budget of trials and the same options of the sampler, one trial at a time
and four, which end in a random order that is the same for both. A sweep makes a new sampler for each trial, so that it
can be resumed; plain Optuna has one for all of them. Studies are in memory, without Ray.

Each seed gives a pair. Shown are both means of the best value found and the mean difference, ours less Optuna's, with
the interval of 95% that a bootstrap over the pairs gives: below 0 ours is better. One interval in twenty leaves out a
difference of 0 by chance.

    python tests/benchmarks/sweep_quality.py [--samplers tpe,nsga2] [--at-a-time 1,4] [--seeds N] [--trials N]
"""

from __future__ import annotations

import argparse
import math
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from raymlops.config.load import load_data
from raymlops.tuning.search_space import draw, draw_order
from raymlops.tuning.study.samplers import NSGAII
from raymlops.tuning.study.storage import create_study, quiet_optuna
from raymlops.tuning.study.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESAMPLES = 10_000
GENERATION = 10
"""Of nsga2: so few that it has several, of which the first is random."""
HARTMANN_A = (
    (10, 3, 17, 3.5, 1.7, 8),
    (0.05, 10, 17, 0.1, 8, 14),
    (3, 3.5, 1.7, 10, 17, 8),
    (17, 8, 0.05, 10, 0.1, 14),
)
HARTMANN_P = (
    (1312, 1696, 5569, 124, 8283, 5886),
    (2329, 4135, 8307, 3736, 1004, 9991),
    (2348, 1451, 3522, 2883, 3047, 6650),
    (4047, 8828, 8732, 5743, 1091, 381),
)
HARTMANN_C = (1.0, 1.2, 3.0, 3.2)


def branin(x: float, y: float) -> float:
    """Its least value is 0.398."""
    bent = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return bent**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def hartmann(*x: float) -> float:
    """Its least value is -3.322."""
    return -sum(
        weight * math.exp(-sum(a * (each - p / 10_000) ** 2 for a, each, p in zip(row, x, place, strict=True)))
        for weight, row, place in zip(HARTMANN_C, HARTMANN_A, HARTMANN_P, strict=True)
    )


def rastrigin(*x: float) -> float:
    return 10 * len(x) + sum(each**2 - 10 * math.cos(2 * math.pi * each) for each in x)


def ackley(*x: float) -> float:
    distance, waves = math.sqrt(mean(each**2 for each in x)), mean(math.cos(2 * math.pi * each) for each in x)
    return -20 * math.exp(-0.2 * distance) - math.exp(waves) + 20 + math.e


def rosenbrock(*x: float) -> float:
    return sum(100 * (after - before**2) ** 2 + (1 - before) ** 2 for before, after in pairwise(x))


def conditional(kind: str, **x: float) -> float:
    """A bowl of one parameter, which ends at 1, or a narrower one of two others, which ends at 0."""
    if kind == "one":
        return 1 + (x["a"] - 2) ** 2
    return (x["b"] + 1) ** 2 + 10 * (math.log10(x["c"]) + 3) ** 2


@dataclass(frozen=True)
class Function:
    """A function of the parameters of its space."""

    space: Mapping[str, Any]
    of: Callable[[Mapping[str, Any]], float]

    @classmethod
    def of_box(cls, function: Callable[..., float], *ranges: tuple[float, float]) -> Function:
        """Return a function of numbers, each in its range."""
        space = {f"x{index}": {"float": list(ends)} for index, ends in enumerate(ranges)}
        return cls(space, lambda params: function(*(params[name] for name in space)))


FUNCTIONS = {
    "Branin": Function.of_box(branin, (-5, 10), (0, 15)),
    "Hartmann 6": Function.of_box(hartmann, *[(0, 1)] * 6),
    "Rastrigin 3": Function.of_box(rastrigin, *[(-5.12, 5.12)] * 3),
    "Ackley 4": Function.of_box(ackley, *[(-32.768, 32.768)] * 4),
    "Rosenbrock 3": Function.of_box(rosenbrock, *[(-2.048, 2.048)] * 3),
    "conditional": Function(
        {
            "kind": {"categorical": ["one", "two"]},
            "a": {"float": [-5, 5], "when": {"recipe.config.kind": "one"}},
            "b": {"float": [-5, 5], "when": {"recipe.config.kind": "two"}},
            "c": {"float": [1e-5, 1.0], "log": True, "when": {"recipe.config.kind": "two"}},
        },
        lambda params: conditional(**params),
    ),
}


def spec_of(name: str, *, sampler: str, seed: int, trials: int) -> Any:
    """Return the configuration of a sweep over a function's space."""
    space = {f"recipe.config.{key}": searched for key, searched in FUNCTIONS[name].space.items()}
    section = {"sampler": sampler, "seed": seed, "num_trials": trials, "scheduler": "none", "space": space}
    if sampler == "nsga2":
        section["startup_trials"] = GENERATION
    return load_data({"project": {"name": "quality"}, "recipe": {"import": "a:B"}, "sweep": section}).spec


def best_of(name: str, *, seed: int, trials: int, at_a_time: int, ask: Any, tell: Any) -> float:
    """Return the best value that trials find, of which so many run at a time; which of them ends next is random."""
    order, running, found = random.Random(seed), [], []
    for _ in range(trials + at_a_time):
        if len(found) + len(running) < trials:
            running.append(ask())
        if running and (len(running) == at_a_time or len(found) + len(running) == trials):
            trial, params = running.pop(order.randrange(len(running)))
            value = FUNCTIONS[name].of({key.removeprefix("recipe.config."): value for key, value in params.items()})
            found.append(value)
            tell(trial, value)
    assert len(found) == trials
    return min(found)


def ours(name: str, *, sampler: str, seed: int, trials: int, at_a_time: int) -> float:
    """Return the best value that a sweep finds."""
    spec = spec_of(name, sampler=sampler, seed=seed, trials=trials)
    study = create_study(optuna.storages.InMemoryStorage(), "s", objectives=spec.objectives)
    of = Trials(study, section=spec.sweep, objectives=spec.objectives)

    def ask() -> tuple[int, Any]:
        opened = of.ask()
        return opened.number, opened.params

    def tell(number: int, value: float) -> None:
        metrics = {spec.objectives[0].metric: value}
        of.report(number, epoch=1, value=value, metrics=metrics, best_metrics=metrics)
        of.tell(number, "complete")

    return best_of(name, seed=seed, trials=trials, at_a_time=at_a_time, ask=ask, tell=tell)


def plain(name: str, *, sampler: str, seed: int, trials: int, at_a_time: int) -> float:
    """Return the best value that plain Optuna finds with the options of a sweep's sampler."""
    section = spec_of(name, sampler=sampler, seed=seed, trials=trials).sweep
    startup = section.startup_trials
    made: dict[str, Callable[[], Any]] = {
        "tpe": lambda: optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True
        ),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False),
        "nsga2": lambda: NSGAII(seed=seed, population_size=startup),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    study = optuna.create_study(sampler=made[sampler]())
    order = draw_order(section.space)

    def ask() -> tuple[Any, Any]:
        trial = study.ask()
        return trial, draw(trial, section.space, order=order)

    return best_of(name, seed=seed, trials=trials, at_a_time=at_a_time, ask=ask, tell=study.tell)


def pair(seed: int, *, name: str, sampler: str, trials: int, at_a_time: int) -> tuple[float, float]:
    """Return what a sweep finds and what plain Optuna does."""
    with quiet_optuna():
        common = {"sampler": sampler, "seed": seed, "trials": trials, "at_a_time": at_a_time}
        return ours(name, **common), plain(name, **common)


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Return the interval of 95% of their mean, by a bootstrap."""
    rng = np.random.default_rng(0)
    means = rng.choice(differences, size=(RESAMPLES, len(differences))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", default="tpe,nsga2")
    parser.add_argument("--functions", default=",".join(FUNCTIONS))
    parser.add_argument("--at-a-time", default="1,4")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--trials", type=int, default=40)
    options = parser.parse_args()
    print("| sampler | at a time | function | ours | Optuna | ours less Optuna | 95% | pairs that ours wins |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with ProcessPoolExecutor() as pool:
        for sampler in options.samplers.split(","):
            for at_a_time in map(int, options.at_a_time.split(",")):
                for name in options.functions.split(","):
                    one = partial(pair, name=name, sampler=sampler, trials=options.trials, at_a_time=at_a_time)
                    found = np.array(list(pool.map(one, range(options.seeds), chunksize=4)))
                    differences = found[:, 0] - found[:, 1]
                    low, high = interval(differences)
                    print(
                        f"| {sampler} | {at_a_time} | {name} | {found[:, 0].mean():.4g} | {found[:, 1].mean():.4g} "
                        f"| {differences.mean():+.3g} | {low:+.3g} to {high:+.3g}{' (worse)' if low > 0 else ''} "
                        f"| {(differences < 0).mean():.0%} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
