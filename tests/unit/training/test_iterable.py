"""An iterable dataset is drawn by growing row numbers, an epoch a pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sourced import Items

from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase
from raymlops.training.data import prepare
from raymlops.training.iterable import IterableSplit
from raymlops.training.local import run_local
from raymlops.training.sampling import micro_batches


def _split(dataset: Any, **options: Any) -> IterableSplit:
    return IterableSplit(dataset, name="train", recipe=RecipeBase(), **options)


def _numbers(batch: Any) -> list[int]:
    return [round(x * 100) for x in batch[0][:, 0].tolist()]


def test_one_pass_counts_and_hashes() -> None:
    """The count and the digest come from a single pass; a process that knows them makes none."""
    dataset = Items(5000)
    split = _split(dataset)
    assert (split.rows, dataset.passes) == (5000, 1)
    again = Items(5000)
    known = split.describe()
    other = _split(again, rows=known["rows"], digest=known["digest"])
    assert (list(other.fingerprint()), again.passes) == (list(split.fingerprint()), 0)
    assert len(other.row_hashes()) == 5000
    assert _split(Items(4999)).digest() != split.digest()


def test_growing_numbers_walk_on_and_going_back_starts_over() -> None:
    """Rows come by number in the order asked for; only a number that has gone by costs a new pass."""
    dataset = Items(50)
    split = _split(dataset, rows=50, digest="")
    assert _numbers(split.batch(torch.tensor([3, 1]))) == [3, 1]
    assert _numbers(split.batch(torch.tensor([10, 1, 12]))) == [10, 1, 12], "those of the last call are at hand"
    assert dataset.passes == 1
    assert _numbers(split.batch(torch.tensor([2]))) == [2]
    assert dataset.passes == 2


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("skip", [0, 1, 6])
def test_an_epoch_is_one_pass_of_each_rank(world: int, skip: int) -> None:
    """W ranks that read all and keep their shares have each row that is left once, with a tiny last batch too."""
    drawn: list[int] = []
    for rank in range(world):
        dataset = Items(50, shuffled=True)
        split = _split(dataset, rows=50, digest="")
        for batch in split.global_batches(batch_size=7, seed=0, epoch=3, skip=skip):
            for piece, weight in micro_batches(batch, rank=rank, world=world, pieces=4):
                numbers = _numbers(split.batch(piece))
                drawn += numbers if weight else []
        assert (dataset.passes, dataset.epochs) == (1, [3])
    order = np.random.default_rng(3).permutation(50).tolist()
    assert sorted(drawn) == sorted(order[7 * skip :])


def test_memory_holds_a_global_batch_at_most() -> None:
    """What goes by is let go, in an epoch and in a pass of evaluation in its middle."""
    split = _split(Items(1000), rows=1000, digest="")
    held = 0
    for indices in split.global_batches(batch_size=10, seed=0, epoch=1):
        split.batch(indices[::2])
        held = max(held, len(split._cursor._held))
        if indices[0] == 500:
            for _ in split.batches(torch.arange(0, 1000, 2), batch_size=8):
                held = max(held, len(split._cursor._held))
    assert held <= 18


@pytest.mark.parametrize(
    ("recipe", "message"),
    [("sourced:Short", "ended after 47 rows, but 50 were counted"), ("sourced:Long", "goes on after 50 rows")],
)
def test_a_pass_of_another_length_is_refused(tiny_project: Any, recipe: str, message: str) -> None:
    """A dataset whose passes differ cannot be counted, so no epoch would be exact."""
    with pytest.raises(RecipeError, match=message):
        run_local(tiny_project(recipe=recipe))


def test_a_dataset_that_raises_is_named() -> None:
    """The error says which split it was."""

    class Breaks(Items):
        def __iter__(self) -> Any:
            yield from super().__iter__()
            msg = "the line is dead"
            raise ValueError(msg)

    with pytest.raises(RecipeError, match=r"the train split, an iterable dataset, raised ValueError: the line is dead"):
        _split(Breaks(3))


def test_a_recipe_trains_on_it(tiny_project: Any) -> None:
    """The loop needs no more than rows by number; the rows of all splits are known."""
    project = tiny_project(recipe="sourced:Iterated", epochs=8, batch_size=10, lr=0.05)
    prepared = prepare(project)
    assert prepared.data.rows == {"train": 300, "validation": 40, "test": 30}
    result = run_local(project, prepared=prepared)
    assert result.history[-1]["validation/loss"] < result.history[0]["validation/loss"]
    assert prepare(project, sources=prepared.sources()).data == prepared.data
