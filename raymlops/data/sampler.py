"""The rows of an epoch, which a recipe's own ``sampler`` may choose: the same in every process, of one length.

Knows nothing of ranks; splits own the order of an epoch without a sampler.
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
    from collections.abc import Iterable, Iterator

    from raymlops.config.train import TrainSection
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


def epoch_batches(split: SplitData, spec: TrainSection, *, epoch: int, skip: int, rows: int) -> Iterator[torch.Tensor]:
    """Yield the indices of each global batch of an epoch but the first ``skip``, the same on every rank.

    An index is what ``batch`` takes: the row's number, and of a row of a dataset that a sampler draws for the n-th time
    (from 0) n times the number of rows more.

    Raises:
        RecipeError: as ``sampled_rows``, or the sampler yields another number of rows than ``epoch_rows`` found.
    """
    sampled = sampled_rows(split, seed=spec.seed, epoch=epoch)
    batches: Iterable[torch.Tensor]
    if sampled is None:
        batches = split.global_batches(batch_size=spec.batch_size, seed=spec.seed, epoch=epoch, skip=skip)
    elif len(sampled) != rows:
        raise RecipeError(
            f"{type(split.recipe).__name__}.sampler() yielded {len(sampled)} rows for epoch {epoch}, and {rows} for "
            "epoch 1",
            hint="Every epoch must be as long: the learning rate follows the number of steps.",
        )
    else:
        split.start_epoch(seed=spec.seed, epoch=epoch)
        starts = range(skip * spec.batch_size, len(sampled), spec.batch_size)
        batches = (sampled[start : start + spec.batch_size] for start in starts)
    for indices in batches:
        if spec.drop_last and len(indices) < spec.batch_size:
            return
        yield indices


def sampled_rows(split: SplitData, *, seed: int, epoch: int) -> torch.Tensor | None:
    """Return the indices (int64) of an epoch in the order of the recipe's ``sampler``; None without one.

    They are as those of ``epoch_batches``.

    Raises:
        RecipeError: ``sampler()`` raises, yields no row or anything but row numbers of the split, or the split has an
            order of its own.
    """
    if type(split.recipe).sampler is RecipeBase.sampler:
        return None
    if split.sampled is None or split.sampled[:2] != (seed, epoch):  # the first epoch's length is asked for ahead
        rows = _drawn(split, seed=seed, epoch=epoch)
        split.sampled = None if rows is None else (seed, epoch, split.numbered(rows))
    return None if split.sampled is None else split.sampled[2]


def _drawn(split: SplitData, *, seed: int, epoch: int) -> torch.Tensor | None:
    recipe = split.recipe
    where = f"{type(recipe).__name__}.sampler()"
    most = max(_MANY, _PASSES * split.rows)

    def draw() -> Any:
        found = recipe.sampler(split.indexed, epoch)
        return found if found is None or isinstance(found, np.ndarray | torch.Tensor) else list(islice(found, most + 1))

    with Stream(derived_seed(seed, epoch)).drawn_from():
        try:
            drawn = call_recipe(where, draw)
        except RecipeError:
            if split.indexed is not None:
                raise
            drawn = split  # which gave it no rows to read
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
