"""How the words of a search space become Optuna's suggestions.

Owns the order in which parameters are drawn and the conditions under which one exists. Knows nothing of what
the parameters mean, of Ray or of storage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.config.rules import exists
from raymlops.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.config.space import Distribution, Scalar


def draw_order(space: Mapping[str, Distribution]) -> tuple[str, ...]:
    """Return the parameters so that each comes after those its ``when`` names, else as written.

    Raises:
        UsageError: a condition names a parameter that is not in the space, or conditions form a circle.
    """
    for key, distribution in space.items():
        missing = distribution.when.keys() - space.keys()
        if missing:
            raise UsageError(
                f"sweep.space: {key} exists only when {', '.join(sorted(missing))}, which is not in the space",
                hint=f"A condition names another parameter of the space: {', '.join(sorted(space))}.",
            )
    order: dict[str, None] = {}
    while len(order) < len(space):
        waiting = [key for key in space if key not in order]
        ready = next((key for key in waiting if space[key].when.keys() <= order.keys()), None)
        if ready is None:
            raise UsageError(f"sweep.space: the conditions of {', '.join(waiting)} form a circle")
        order[ready] = None
    return tuple(order)


def draw(trial: Any, space: Mapping[str, Distribution], *, order: tuple[str, ...]) -> dict[str, Scalar]:
    """Draw every parameter that exists, from an Optuna trial, in ``order``.

    A parameter exists when each parameter that its ``when`` names exists and has one of the values given.
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
    elif distribution.kind == "int":
        step = 1 if distribution.step is None else distribution.step
        value = trial.suggest_int(key, distribution.low, distribution.high, log=distribution.log, step=step)
    else:
        value = trial.suggest_float(
            key, distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    return value
