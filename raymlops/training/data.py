"""The data of a run: a recipe's splits opened and fitted, ready to be drawn by row index.

Owns the way from ``datasets()`` to ``Prepared``, and the fingerprint. What a split is and how it is read stands in
``split``, ``streamed`` and ``iterable``; knows nothing of ranks, epochs or devices.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase, call_recipe, signature_of
from raymlops.records import DataRecord
from raymlops.training import storage
from raymlops.training.columns import table_columns
from raymlops.training.raydata import FOLDER
from raymlops.training.sources import Memory, open_source, stands_alone
from raymlops.training.split import SplitData
from raymlops.training.streamed import ParquetSplit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.project import Project

__all__ = ["SOURCES", "Memory", "Prepared", "SplitData", "prepare", "table_columns", "written"]

SPLITS = ("train", "validation", "test")
SOURCES = "data/sources.json"
"""Artifact of a run: what ``Prepared.sources()`` returned, for whoever has to find its rows again."""


@dataclass(frozen=True)
class Prepared:
    """A recipe with its state, and its splits."""

    recipe: RecipeBase
    splits: dict[str, SplitData]
    state: dict[str, Any]

    @cached_property
    def data(self) -> DataRecord:
        """Return rows and fingerprint of all splits; it reads every row once."""
        digest = sha256()
        for name, split in self.splits.items():
            digest.update(f"{name}:{split.rows}:".encode())
            for chunk in split.fingerprint():
                digest.update(chunk)
        return DataRecord(digest.hexdigest(), {name: split.rows for name, split in self.splits.items()})

    def sources(self) -> dict[str, Any]:
        """Return as JSON data what lets ``prepare`` give another process the very same rows, without looking again."""
        return {name: split.describe() for name, split in self.splits.items()}

    def verify(self) -> None:
        """Check, without reading rows, that the files of streamed splits are those that were listed.

        Raises:
            StorageError: a file is gone or was changed.
        """
        for split in self.splits.values():
            if isinstance(split, ParquetSplit):
                split.verify()


def prepare(
    project: Project,
    *,
    state: Mapping[str, Any] | None = None,
    sources: Mapping[str, Any] | None = None,
    memory: Memory | None = None,
) -> Prepared:
    """Open the splits and fit the recipe on the training split, or take over the ``state`` of an earlier fit.

    ``sources`` is what ``Prepared.sources()`` returned in another process, for some splits or all of them. Parquet
    files are then those, and ``datasets()`` is called only where a split needs it; what it returns must have as many
    rows as it had there. ``memory`` bounds what streamed splits take.

    Raises:
        RecipeError: ``datasets()``, ``fit()`` or ``signature()`` raises, a split is missing, empty or of an unknown
            kind, there is no signature, a column of it or the label is not in a table, the fitted state is no
            JSON data, or a split is not that of ``sources``.
        StorageError: a Parquet file cannot be read, or Ray Data cannot be written.
    """
    name = project.recipe_class.__name__
    known = {part: None if sources is None else sources.get(part) for part in SPLITS}
    recipe = call_recipe(f"{name}()", lambda: project.recipe(state=state))
    splits: Any = None
    if not all(stands_alone(known[part]) for part in SPLITS):
        splits = call_recipe(f"{name}.datasets()", recipe.datasets)
    data_uri = storage.join(project.spec.storage.path, FOLDER)
    opened = {
        part: open_source(splits, part, name=name, known=known[part], data_uri=data_uri, memory=memory or Memory())
        for part in SPLITS
    }
    if state is None:
        train = opened["train"].to_fit()
        fitted = _json(call_recipe(f"{name}.fit()", lambda: recipe.fit(train)), where=f"{name}.fit()")
        recipe = call_recipe(f"{name}()", lambda: project.recipe(state=fitted))
    signature_of(recipe)  # training on a torch dataset never asks for it, serving does
    return Prepared(
        recipe=recipe,
        splits={part: source.split(recipe) for part, source in opened.items()},
        state=dict(recipe.state),
    )


def written(sources: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ``sources`` that were written from Ray Data, which no later process should run again."""
    return {part: known for part, known in sources.items() if known.get("written")}


def _json(state: Any, *, where: str) -> dict[str, Any]:
    try:
        plain = json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{where} returned what JSON cannot hold: {error}", hint="Return text, finite numbers, lists and dicts."
        ) from error
    if not isinstance(plain, dict):
        raise RecipeError(f"{where} returned a {type(state).__name__}; return a dict")
    return plain
