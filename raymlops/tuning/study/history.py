"""The trials that TPE learns from, as arrays that grow with the study.

Optuna (5.0) goes through all of them in Python for each draw, several times. Owns that they are ranked as Optuna does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

_COMPLETE, _PRUNED, _INFEASIBLE = range(3)


class History:
    """Trials that are complete or pruned, as rows in the order in which they were added."""

    def __init__(self, directions: Sequence[Any], trials: Iterable[Any] = ()) -> None:
        """Add the ``trials`` that have ended, of a study with these ``directions``, of which the first one counts."""
        self._sign = -1.0 if directions[0].name == "MAXIMIZE" else 1.0
        self._trials: list[Any] = []
        self._numbers = _Column()
        self._ranks = [_Column() for _ in range(3)]
        """By which a lower one is better, the last one first."""
        self._params: dict[str, tuple[Any, _Column]] = {}
        self._spaces: dict[frozenset[str], Any] = {}
        for trial in trials:
            self.add(trial)

    def __len__(self) -> int:
        return len(self._trials)

    def add(self, trial: Any) -> None:
        """Add a trial (``FrozenTrial``) that has ended; a failed one teaches nothing."""
        if trial.state.name not in {"COMPLETE", "PRUNED"}:
            return
        self._trials.append(trial)
        self._numbers.append(trial.number)
        for column, rank in zip(self._ranks, self._rank(trial), strict=True):
            column.append(rank)
        names = frozenset(trial.distributions)
        known = self._spaces.get(names)
        if known is None or trial.number < known.number:
            self._spaces[names] = trial

    @property
    def spaces(self) -> list[Mapping[str, Any]]:
        """Return the distributions of the first trial with each set of parameters, in the order of these trials.

        Optuna's groups of parameters follow from these alone: more trials with the same ones change nothing.
        """
        return [trial.distributions for trial in sorted(self._spaces.values(), key=lambda trial: trial.number)]

    def split(self, best: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of so many ``best`` trials, and those of all others."""
        ranked = np.lexsort((self._numbers.values, *(column.values for column in self._ranks)))
        return ranked[:best], ranked[best:]

    def observed(
        self, rows: NDArray[np.int64], space: Mapping[str, Any], *, more: Sequence[tuple[int, Mapping[str, Any]]] = ()
    ) -> dict[str, NDArray[np.float64]]:
        """Return what the trials of ``rows`` had for each parameter of ``space``, without those that lack one.

        They are in the order of their numbers, with those of ``more``, each its number and its parameters.
        """
        whole = [(number, params) for number, params in more if space.keys() <= params.keys()]
        values = {
            name: np.append(
                self._column(name, distribution)[rows],
                [float(distribution.to_internal_repr(params[name])) for _, params in whole],
            )
            for name, distribution in space.items()
        }
        order = np.argsort(np.append(self._numbers.values[rows], [number for number, _ in whole]))
        order = order[~np.any([np.isnan(column[order]) for column in values.values()], axis=0)]
        return {name: column[order] for name, column in values.items()}

    def _rank(self, trial: Any) -> tuple[float, float, float]:
        """Return by what Optuna ranks a trial, the least important first."""
        excess = sum(value for value in trial.constraints.values() if value > 0)
        if excess > 0:
            return 0.0, excess, _INFEASIBLE
        if trial.state.name == "COMPLETE":
            return 0.0, self._sign * trial.values[0], _COMPLETE
        if not trial.intermediate_values:
            return 0.0, 1.0, _PRUNED
        step, value = max(trial.intermediate_values.items())
        return math.inf if math.isnan(value) else self._sign * value, -step, _PRUNED

    def _column(self, name: str, distribution: Any) -> NDArray[np.float64]:
        """Return the values of a parameter as Optuna's samplers see them; NaN where a trial has none."""
        known, column = self._params.get(name, (None, _Column()))
        if known != distribution:
            column = _Column()
        self._params[name] = distribution, column
        for trial in self._trials[len(column) :]:
            had = name in trial.params
            column.append(distribution.to_internal_repr(trial.params[name]) if had else math.nan)
        return column.values


class _Column:
    """An array that grows."""

    def __init__(self) -> None:
        self._all = np.empty(64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def values(self) -> NDArray[np.float64]:
        return self._all[: self._count]

    def append(self, value: float) -> None:
        if self._count == len(self._all):
            self._all = np.resize(self._all, 2 * self._count)
        self._all[self._count] = value
        self._count += 1
