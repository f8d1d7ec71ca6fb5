"""How the test rows of a version lie to its training rows: read from its data, and from the sketch in its bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raymlops.bundle.trained_rows import overlap
from raymlops.recipe import known_times_of, times_of
from raymlops.registry.later_rows import Newest, Times, later, order_of, others, whole_days

BLOCKS = 200
"""Of test rows without times."""

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from raymlops.bundle.load import LoadedModel
    from raymlops.data.prepare import Prepared
    from raymlops.data.split import SplitData
    from raymlops.recipe import RecipeBase
    from raymlops.records import GateCheck
    from raymlops.registry.gate_rules import BlocksAre


def later_rows(
    candidate: LoadedModel, prepared: Prepared, *, most: float
) -> tuple[list[GateCheck], tuple[str, str] | None]:
    """Return the checks of a version's test rows: later than its training rows, and at most a share of them the same.

    And return the times, as ``GateDecision`` has them, up to which rows were trained on or chose the epoch.

    Raises:
        RecipeError: ``row_times`` or ``label_times`` raises, or gives no time a row.
        StorageError: the data cannot be read.
    """
    train, test, recipe, newest = prepared.splits["train"], prepared.splits["test"], prepared.recipe, Newest()
    order = order_of(newest.of(_times(train, recipe)), _times(test, recipe))
    for _ in newest.of(_times(prepared.splits["validation"], recipe)):
        pass
    same = overlap(candidate.row_hashes, test.hashes(), hashed_share=candidate.hashed_share)
    return [later(order), others(same, most=most)], newest.times


def blocks_of(
    test: SplitData, recipe: RecipeBase, *, number: int | None
) -> tuple[list[npt.NDArray[np.int64]], BlocksAre]:
    """Return the rows of each block of a test split, and what blocks are: whole days or weeks where rows have times.

    Else, or where ``number`` says how many, they are contiguous rows.

    Raises:
        RecipeError: ``row_times`` raises, or gives no time a row.
        StorageError: the data cannot be read.
    """
    times = [] if number else [times_of(recipe, columns) for columns in test.chunks()]
    known = [one for one in times if one is not None]
    if not known or len(known) < len(times):
        return np.array_split(np.arange(test.rows), min(number or BLOCKS, test.rows)), "blocks"
    codes, are = whole_days(np.concatenate(known))
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]), are


def _times(split: SplitData, recipe: RecipeBase) -> Iterator[Times | None]:
    for columns in split.chunks():
        known = known_times_of(recipe, columns)
        arose = times_of(recipe, columns)
        yield None if known is None else Times(known if arose is None else arose, known)
