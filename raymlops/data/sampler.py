"""The rows of an epoch that a recipe's own ``sampler`` chooses: the same in every process, of one length.

Knows nothing of batches or ranks; ``order`` owns the order of an epoch without a sampler.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raymlops.data.order import derived_seed
from raymlops.data.random_streams import Stream
from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase, call_recipe, described

if TYPE_CHECKING:
    from raymlops.data.split import SplitData


_MANY, _PASSES = 1_000_000, 20
"""Rows of an epoch, and passes over the split, of which a sampler may yield the larger: it might never end."""


def epoch_rows(split: SplitData, *, seed: int) -> int:
    """Return the number of rows of each epoch.

    Raises:
        RecipeError: as ``sampled_rows``.
    """
    sampled = sampled_rows(split, seed=seed, epoch=1)
    return split.rows if sampled is None else len(sampled)


def sampled_rows(split: SplitData, *, seed: int, epoch: int) -> torch.Tensor | None:
    """Return the row numbers (int64) of an epoch in the order of the recipe's ``sampler``; None without one.

    Raises:
        RecipeError: ``sampler()`` raises, yields no row or anything but row numbers of the split, or the split has an
            order of its own.
    """
    recipe = split.recipe
    if type(recipe).sampler is RecipeBase.sampler:
        return None
    where = f"{type(recipe).__name__}.sampler()"
    most = max(_MANY, _PASSES * split.rows)

    def draw() -> Any:
        found = recipe.sampler(split.indexed, epoch)
        return found if found is None or isinstance(found, np.ndarray | torch.Tensor) else list(islice(found, most + 1))

    with Stream(derived_seed(seed, epoch)).drawn_from():
        drawn = call_recipe(where, draw)
    if drawn is None:
        return None
    if split.indexed is None:
        raise RecipeError(
            f"{where} chooses rows, but the {split.name} split is {described(split)}, whose rows are read in an order "
            "of their own",
            hint="Use a table in memory (Parquet up to 64 MB) or a torch dataset with __getitem__.",
        )
    if not len(drawn):
        raise RecipeError(f"{where} yielded no row for epoch {epoch}")
    if len(drawn) > most:
        raise RecipeError(
            f"{where} yields more than {most:,} rows of a split of {split.rows:,}, maybe without an end",
            hint="An epoch must end: stop after len(train) rows, say, and train more epochs.",
        )
    hint = "Yield row numbers, one integer each, not lists of them: train.batch_size rows in turn are a step."
    try:
        rows = torch.as_tensor(drawn)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"{where} yielded {described(drawn[0])} first", hint=hint) from error
    if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
        raise RecipeError(
            f"{where} yielded a tensor of shape {tuple(rows.shape)} and {rows.dtype}",
            hint=hint,
        )
    rows = rows.to(torch.int64)
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= split.rows:
        raise RecipeError(f"{where} yielded row {low if low < 0 else high}; the split has rows 0 to {split.rows - 1}")
    return rows
