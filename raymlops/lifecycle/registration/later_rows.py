"""How the test rows of a version lie to its training rows: read from its data, and from the sketch in its bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.bundle.trained_rows import overlap
from raymlops.recipe import known_times_of
from raymlops.registry.later_rows import later, order_of, others

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.bundle.load import LoadedModel
    from raymlops.data.prepare import Prepared
    from raymlops.data.split import SplitData
    from raymlops.recipe import RecipeBase
    from raymlops.records import GateCheck
    from raymlops.registry.later_rows import Times


def later_rows(candidate: LoadedModel, prepared: Prepared, *, most: float) -> list[GateCheck]:
    """Return the checks of a version's test rows: later than its training rows, and at most a share of them the same.

    Raises:
        RecipeError: ``row_times`` or ``label_times`` raises, or gives no time a row.
        StorageError: the data cannot be read.
    """
    train, test, recipe = prepared.splits["train"], prepared.splits["test"], prepared.recipe
    order = order_of(_times(train, recipe), _times(test, recipe))
    same = overlap(candidate.row_hashes, test.hashes(), hashed_share=candidate.hashed_share)
    return [later(order), others(same, most=most)]


def _times(split: SplitData, recipe: RecipeBase) -> Iterator[Times | None]:
    for columns in split.chunks():
        yield known_times_of(recipe, columns)
