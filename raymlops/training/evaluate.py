"""Evaluation: a recipe's sums over a split, every row exactly once for any number of ranks."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from raymlops.recipe import to_device
from raymlops.training.metrics import Totals, add, batch_totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from raymlops.recipe import RecipeBase
    from raymlops.training.data import SplitData


def totals(
    recipe: RecipeBase,
    model: nn.Module,
    split: SplitData,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    before_batch: Callable[[], None] | None = None,
    exchanges: bool = False,
) -> Totals:
    """Return the sums over this rank's share of the rows, without padding.

    ``model`` is the plain module, never the DDP wrapper: its forward exchanges buffers, and a rank with one batch
    less would leave the others waiting. A rank without a row returns zeros of the right shapes. A model whose
    forward ``exchanges`` parameters, because they are sharded, is run equally often on every rank: one with fewer
    batches runs on a row whose sums do not count.

    Raises:
        RecipeError: ``metrics()`` breaks its contract.
    """
    indices = split.share(rank=rank, world=world)
    most = math.ceil(math.ceil(split.rows / world) / batch_size)
    return _sums(
        recipe,
        model,
        split,
        indices,
        batch_size=batch_size,
        device=torch.device(device),
        before_batch=before_batch,
        passes=most if exchanges else 0,
    )


def block_totals(
    recipe: RecipeBase,
    model: nn.Module,
    split: SplitData,
    *,
    blocks: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> list[Totals]:
    """Return the sums over each of ``blocks`` contiguous blocks of rows (at most one a row), for resampling."""
    parts = np.array_split(np.arange(split.rows), min(blocks, split.rows))
    return [
        _sums(recipe, model, split, torch.from_numpy(part), batch_size=batch_size, device=torch.device(device))
        for part in parts
    ]


def _sums(
    recipe: RecipeBase,
    model: nn.Module,
    split: SplitData,
    indices: torch.Tensor,
    *,
    batch_size: int,
    device: torch.device,
    before_batch: Callable[[], None] | None = None,
    passes: int = 0,
) -> Totals:
    total: Totals | None = None
    done = 0
    with _evaluating(model):
        for batch in split.batches(indices, batch_size=batch_size):
            if before_batch is not None:
                before_batch()
            total = add(total, batch_totals(recipe, model, to_device(batch, device)))
            done += 1
        while total is None or done < passes:
            one = batch_totals(recipe, model, to_device(split.batch(torch.tensor([0])), device))
            total = add(total, {name: np.zeros_like(value) for name, value in one.items()})
            done += 1
    return total


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
