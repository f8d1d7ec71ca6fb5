"""Sums over a split do not depend on how it is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raymlops.data.prepare import prepare
from raymlops.errors import RecipeError
from raymlops.training.loop.evaluation import add, block_totals, totals


@pytest.mark.parametrize(("world", "batch_size"), [(1, 7), (2, 4096), (3, 10)])
def test_shards_add_up_to_the_whole(tiny_project: Any, world: int, batch_size: int) -> None:
    """101 rows on any number of ranks in any batches: every sum, histograms included, is that of one batch."""
    prepared = prepare(tiny_project())
    split = prepared.splits["validation"]
    model = prepared.recipe.model()
    whole = totals(prepared.recipe, model, split, batch_size=101)
    merged = None
    for rank in range(world):
        part = totals(prepared.recipe, model, split, batch_size=batch_size, rank=rank, world=world)
        merged = add(merged, part)
    assert merged is not None
    assert merged["count"] == 101
    for name, value in whole.items():
        np.testing.assert_allclose(merged[name], value, rtol=1e-6)


def test_a_rank_without_rows_returns_zeros(tiny_project: Any) -> None:
    """Two rows on three ranks: the third one's sums are zeros of the right shapes."""
    prepared = prepare(tiny_project(config={"validation_rows": 2}))
    empty = totals(
        prepared.recipe, prepared.recipe.model(), prepared.splits["validation"], batch_size=8, rank=2, world=3
    )
    assert empty["positives"].shape == (100,)
    assert all(not value.any() for value in empty.values())


def test_blocks_are_contiguous_and_complete(tiny_project: Any) -> None:
    """20 blocks of 101 rows: one of 6 rows, 19 of 5, and together the whole."""
    prepared = prepare(tiny_project())
    split = prepared.splits["validation"]
    model = prepared.recipe.model()
    blocks = block_totals(prepared.recipe, model, split, blocks=np.array_split(np.arange(101), 20), batch_size=4096)
    assert [int(block["count"]) for block in blocks] == [6] + [5] * 19
    whole = totals(prepared.recipe, model, split, batch_size=4096)
    assert sum(float(block["loss"]) for block in blocks) == pytest.approx(float(whole["loss"]), rel=1e-6)


def test_the_model_is_as_it_was(tiny_project: Any) -> None:
    """Evaluation happens in eval mode without gradients, and training mode is put back."""
    prepared = prepare(tiny_project())
    model = prepared.recipe.model()
    model.train()
    totals(prepared.recipe, model, prepared.splits["validation"], batch_size=50)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sums_of_another_shape_are_refused() -> None:
    """Sums that change their shape from batch to batch cannot be added."""
    with pytest.raises(RecipeError, match=r"'loss'.*shape \(2,\)"):
        add({"loss": np.zeros(())}, {"loss": torch.zeros(2).numpy().astype(np.float64)})
