"""The labels of a table, and what the recipe makes of those that are missing, or all the same."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from raymlops.errors import RecipeError
from raymlops.recipe import call_recipe
from raymlops.training.data_checks.facts import CLASSES, LabelFacts, is_constant, missing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.recipe import RecipeBase

    Array = npt.NDArray[Any]

_TRIED = 256
"""Rows that ``target`` is asked for."""


class Labels:
    """The labels of rows that are added in turn."""

    def __init__(self, recipe: RecipeBase) -> None:
        self._recipe, self._name = recipe, str(recipe.label)
        self._parts: list[Array] = []
        self._first: dict[str, Array] = {}
        self._first_missing: dict[str, Array] = {}

    def add(self, columns: Mapping[str, Array]) -> None:
        """Add the labels of rows, all of whose columns ``target`` may read."""
        values = np.array(columns[self._name])
        self._parts.append(values)
        self._first = self._first or {name: each[:_TRIED] for name, each in columns.items()}
        if values.ndim == 1 and not self._first_missing and (gone := np.flatnonzero(missing(values))[:_TRIED]).size:
            self._first_missing = {name: each[gone] for name, each in columns.items()}

    def facts(self) -> LabelFacts:
        """Return what is checked of them."""
        values = np.concatenate(self._parts)
        if values.ndim > 1 or isinstance(values[0], np.ndarray):
            return LabelFacts(self._name, len(values))
        there = values[~missing(values)]
        found, gone = _classes(there), len(values) - len(there)
        return LabelFacts(
            self._name,
            len(values),
            missing=gone,
            unusable=self._unusable() if gone else "",
            classes=found,
            numbers=np.sort(there.astype(np.float64)) if there.dtype.kind in "biuf" else None,
            constant=f"{next(iter(found))!r}" if len(found) == 1 and not gone and self._targets_are_one() else "",
        )

    def _unusable(self) -> str:
        """Return what ``target`` makes of missing labels, where that is no number; empty where it is one."""
        try:
            target = self._target(self._first_missing)
        except RecipeError as error:
            return error.message
        return "" if bool(torch.isfinite(target.float()).all()) else f"target() gives {target.float().mean():g}"

    def _targets_are_one(self) -> bool:
        """Return whether ``target`` makes one value of the one label, not others by other columns."""
        return is_constant(self._target(self._first).detach().cpu().numpy())

    def _target(self, columns: Mapping[str, Array]) -> torch.Tensor:
        found: torch.Tensor = call_recipe(
            f"{type(self._recipe).__name__}.target()", lambda: self._recipe.target(columns)
        )
        return found


def _classes(labels: Array) -> dict[Any, int]:
    """Return the rows of each label; none where there are too many labels to be classes."""
    if labels.dtype == object:
        found: dict[Any, int] = Counter(labels.tolist())
        return found if len(found) <= CLASSES else {}
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True)) if len(values) <= CLASSES else {}
