"""Read how a bundle's answers are compared with labels: its rule, or its recipe's own ``loss_of``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from raymlops.bundle import verify as names
from raymlops.bundle.load import load_recipe, loss_in
from raymlops.errors import RecipeError
from raymlops.recipe import call_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.answer_loss import AnswerLoss
    from raymlops.recipe import RecipeBase
    from raymlops.storage.filesystem import Location

Pair = tuple[dict[str, Any], Any]
"""One row's outputs, as JSON values, and its label."""


class OwnLosses(NamedTuple):
    """What a recipe's ``loss_of`` returned for answers in their order."""

    values: list[float | None]
    """NaN where it failed."""
    failure: str = ""
    """Its first failure; empty without one."""


def read_loss(uri: Location, digest: str) -> AnswerLoss:
    """Return a bundle's rule; the default for its signature where it was written without one.

    Reads the manifest and one small file, and runs none of the bundle's code.

    Raises:
        BundleError: the bundle is not what the digest vouches for.
        StorageError: the storage cannot be read.
    """
    return loss_in(names.BundleFiles(uri, digest))


def own_losses(uri: Location, digest: str, pairs: Sequence[Pair]) -> OwnLosses:
    """Return the losses of answers by the ``loss_of`` of a bundle's recipe; this runs its code.

    Where it raises, or returns no number from 0 to 1, the loss is NaN; the first failure is returned too.

    Raises:
        BundleError, RecipeImportError, RecipeError, StorageError: the recipe cannot be loaded.
    """
    recipe = load_recipe(uri, digest)
    values: list[float | None] = []
    failure = ""
    for output, label in pairs:
        try:
            values.append(own_loss(recipe, output, label))
        except Exception as error:  # whatever it is, it is the recipe's
            failure = failure or f"{error} (output {_short(output)}, label {_short(label)})"
            values.append(math.nan)
    return OwnLosses(values, failure)


def own_loss(recipe: RecipeBase, output: Mapping[str, Any], label: Any) -> float | None:
    """Return the loss of one answer by the recipe's ``loss_of``; None where that returns none.

    Raises:
        RecipeError: it raises, or returns neither None nor a number from 0 to 1.
    """
    where = f"{type(recipe).__name__}.loss_of()"
    found = call_recipe(where, lambda: recipe.loss_of(output, label))
    if found is None:
        return None
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise RecipeError(f"{where} returned {_short(found)}", hint="Return a number from 0 to 1, or None.")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
