"""The search space: the order of its parameters, their conditions, and points that need no sampler.

Pure: the same space, seed and index give the same start, grid or Sobol point in any process, so that a resumed sweep
continues exactly. Optuna's own samplers (5.0) do not: ``GridSampler`` knows no conditions; ``BruteForceSampler`` reads
every trial at each draw, ends only within ``study.optimize``, and cannot tell the number of points, which the budget
and the checks need; ``QMCSampler`` draws conditional parameters at random and counts its draws in the study, so that a
draw repeated after a crash is another point.
"""

from __future__ import annotations

import math
import random
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from raymlops.config.space import as_param, exists
from raymlops.config.sweep import SweepSection
from raymlops.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from raymlops.config.space import Distribution, Scalar


def draw_order(space: Mapping[str, Distribution]) -> tuple[str, ...]:
    """Return the parameters, each after those that its ``when`` names, otherwise as written."""
    order: dict[str, None] = {}
    while len(order) < len(space):
        # There is one: conditions that are circular, or name what is not in the space, are rejected as it is loaded.
        ready = next(key for key in space if key not in order and space[key].when.keys() <= order.keys())
        order[ready] = None
    return tuple(order)


def draw(trial: Any, space: Mapping[str, Distribution], *, order: tuple[str, ...]) -> dict[str, Scalar]:
    """Draw every existing parameter from an Optuna trial, in ``order``.

    A parameter exists when each parameter that its ``when`` names exists and meets the condition.
    """
    params: dict[str, Scalar] = {}
    for key in order:
        if exists(space[key], params):
            params[key] = _suggest(trial, key, space[key])
    return params


def _suggest(trial: Any, key: str, distribution: Distribution) -> Scalar:
    value: Scalar
    if distribution.kind == "categorical":
        value = trial.suggest_categorical(key, distribution.choices)
    else:
        whole = distribution.kind == "int"
        suggest, step = (trial.suggest_int, 1) if whole else (trial.suggest_float, None)
        value = suggest(key, distribution.low, distribution.high, log=distribution.log, step=distribution.step or step)
    return value


MAX_GRID = 100_000
"""The most points of a grid, which are all in memory."""
LISTED = ("grid", "qmc")
"""Samplers whose points are known in advance."""


def point(spec: SweepSection, index: int) -> dict[str, Scalar] | None:
    """Return the fixed parameters of the sweep's own trial at ``index``, counted from 0.

    Start points come first; then the grid's points in a seeded order, without the start points; or Sobol's points.
    None: the sampler draws everything.

    Raises:
        UsageError: the grid is too large.
    """
    if index < len(spec.enqueue):
        return _start(spec, index)
    later = index - len(spec.enqueue)
    if spec.sampler == "grid":
        rest = _grid_after_starts(spec)
        return dict(rest[later]) if later < len(rest) else None
    if spec.sampler == "qmc":
        return at(spec.space, _sobol(len(spec.space), seed=spec.seed, index=later))
    return None


def how_many(spec: SweepSection) -> int | None:
    """Return the number of points to try; None where it is infinite.

    Raises:
        UsageError: the grid is too large.
    """
    return len(spec.enqueue) + len(_grid_after_starts(spec)) if spec.sampler == "grid" else None


def num_trials(spec: SweepSection, *, refused: int = 0) -> int:
    """Return the number of trials: ``num_trials``, or fewer where a grid has fewer points that are not ``refused``.

    Raises:
        UsageError: the grid is too large.
    """
    points = how_many(spec)
    return spec.num_trials if points is None else min(spec.num_trials, points - refused)


def whole_starts(spec: SweepSection) -> dict[int, dict[str, Scalar]]:
    """Return by index the start points that set every parameter; drawn values may make a partial one valid or not."""
    starts = {index: _start(spec, index) for index in range(len(spec.enqueue))}
    return {
        index: start
        for index, start in starts.items()
        if all(key in start or not exists(searched, start) for key, searched in spec.space.items())
    }


def later_points(spec: SweepSection) -> Iterator[dict[str, Scalar]]:
    """Yield the points that follow the start points; without end random ones where they are not known in advance.

    Raises:
        UsageError: the grid is too large.
    """
    starts, total = len(spec.enqueue), num_trials(spec)
    if spec.sampler in LISTED:
        yield from (point(spec, index) or {} for index in range(starts, total))
        return
    rng = random.Random(spec.seed)  # noqa: S311 - not for secrets
    while starts < total:
        yield at(spec.space, [rng.random() for _ in spec.space])


def grid(space: Mapping[str, Distribution]) -> list[dict[str, Scalar]]:
    """Return all distinct points of a space, the first parameter changing slowest.

    A parameter whose conditions do not hold is left out, so that points which differ in it alone are one.

    No range may be continuous, which the configuration's schema ensures.

    Raises:
        UsageError: there are more than ``MAX_GRID`` points.
    """
    found = list(islice(_points(space, draw_order(space), {}), MAX_GRID + 1))
    if len(found) > MAX_GRID:
        counts = ", ".join(f"{key} {count_values(searched):,}" for key, searched in space.items())
        raise UsageError(
            f"sweep.space has more than {MAX_GRID:,} points, too many for sampler grid: {counts}",
            hint="Set larger steps or fewer choices, or use another sampler.",
        )
    return found


def at(space: Mapping[str, Distribution], unit: Sequence[float]) -> dict[str, Scalar]:
    """Return the point of a space for a point of the unit cube, one coordinate in [0, 1) for each parameter.

    A uniform sample of the cube is uniform over the space, with ``log`` on a log scale. The coordinate of a parameter
    that does not exist at this point is not used.
    """
    params: dict[str, Scalar] = {}
    for key, share in zip(draw_order(space), unit, strict=True):
        if exists(space[key], params):
            params[key] = _at(space[key], share)
    return params


def count_values(searched: Distribution) -> int | None:
    """Return the number of a parameter's values; None where its range is continuous."""
    if searched.kind == "categorical":
        return len(searched.choices)
    if searched.kind == "float" and searched.step is None:
        return 1 if searched.low == searched.high else None
    low, high, step = (Decimal(str(number)) for number in (searched.low, searched.high, searched.step or 1))
    return int((high - low) // step) + 1


def _start(spec: SweepSection, index: int) -> dict[str, Scalar]:
    """Return a start point with each value in its parameter's type: 1 is 1.0 in a float range."""
    types: dict[str, Any] = {"float": float, "int": int}
    written = spec.enqueue[index]
    return {
        key: types.get(searched.kind, as_param)(written[key]) for key, searched in spec.space.items() if key in written
    }


def _grid_after_starts(spec: SweepSection) -> tuple[dict[str, Scalar], ...]:
    return _shuffled(spec.model_dump_json(include={"space", "enqueue", "seed", "num_trials"}))


@lru_cache(maxsize=2)
def _shuffled(section: str) -> tuple[dict[str, Scalar], ...]:
    """Return the points of a grid without the start points, in a seeded order. A section as text can be cached."""
    spec = SweepSection.model_validate_json(section)
    points = grid(spec.space)
    random.Random(spec.seed).shuffle(points)  # noqa: S311 - not for secrets
    known = {_identity(_start(spec, index)) for index in range(len(spec.enqueue))}
    return tuple(found for found in points if _identity(found) not in known)


def _identity(params: Mapping[str, Scalar]) -> frozenset[tuple[str, str]]:
    # As text: True and 1 are two choices. Numbers have their parameter's type already.
    return frozenset((key, repr(value)) for key, value in params.items())


def _points(
    space: Mapping[str, Distribution], order: Sequence[str], params: dict[str, Scalar]
) -> Iterator[dict[str, Scalar]]:
    if not order:
        yield dict(params)
        return
    key, *later = order
    searched = space[key]
    if not exists(searched, params):
        yield from _points(space, later, params)
        return
    for index in range(count_values(searched) or 0):
        yield from _points(space, later, {**params, key: _nth(searched, index)})


def _sobol(dimensions: int, *, seed: int, index: int) -> list[float]:
    from scipy.stats.qmc import Sobol

    sequence = Sobol(dimensions, scramble=True, rng=seed)
    if index:
        sequence.fast_forward(index)
    return [float(share) for share in sequence.random(1)[0]]


def _at(searched: Distribution, share: float) -> Scalar:
    count = count_values(searched)
    if searched.kind != "categorical" and searched.log:
        return _at_log(searched, share)
    if count is not None:
        return _nth(searched, min(int(share * count), count - 1))
    low, high = _ends(searched)
    return min(max(low + share * (high - low), low), high)


def _at_log(searched: Distribution, share: float) -> Scalar:
    low, high = _ends(searched)
    # An integer stands for all values that round to it; otherwise the first and the last would be half as frequent.
    half = 0.5 if searched.kind == "int" else 0.0
    least, most = math.log(low - half), math.log(high + half)
    value = min(max(math.exp(least + share * (most - least)), low), high)
    return round(value) if searched.kind == "int" else value


def _nth(searched: Distribution, index: int) -> Scalar:
    if searched.kind == "categorical":
        return searched.choices[index]
    # In decimals: 0.1 + 2 * 0.1 is 0.3 and not 0.30000000000000004.
    value = Decimal(str(searched.low)) + index * Decimal(str(searched.step or 1))
    return int(value) if searched.kind == "int" else float(value)


def _ends(searched: Distribution) -> tuple[float, float]:
    assert searched.low is not None
    assert searched.high is not None
    return float(searched.low), float(searched.high)
