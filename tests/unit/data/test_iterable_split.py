"""An iterable dataset is drawn by growing row numbers, an epoch a pass."""

from __future__ import annotations

import json
import random
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from local_training import run_local
from sourced import Items

from raymlops.data.iterable_split import IterableSplit
from raymlops.data.order import micro_batches
from raymlops.data.prepare import prepare
from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase

if TYPE_CHECKING:
    from collections.abc import Iterator


def _split(dataset: Any, **known: Any) -> IterableSplit:
    return IterableSplit(dataset, name="train", recipe=RecipeBase(), known=known or None)


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
    assert (other.digest(), again.passes) == (split.digest(), 0)
    assert len(np.concatenate([*other.hashes()])) == 5000
    assert _split(Items(4999)).digest() != split.digest()


class Sized(Items):
    """Says how many items it has; ``spoken`` differs from that where it is wrong."""

    def __init__(self, rows: int, *, spoken: int | None = None) -> None:
        super().__init__(rows)
        self.spoken = rows if spoken is None else spoken

    def __len__(self) -> int:
        return self.spoken


class Unsized(Items):
    """Inherits a ``__len__`` that has no answer."""

    def __len__(self) -> int:
        raise TypeError


def test_a_dataset_with_a_length_is_not_counted() -> None:
    """Its first 64 items are read to identify it; a count of release 0.1 is still compared, by a pass."""
    dataset = Sized(5000)
    split = _split(dataset)
    assert (split.rows, dataset.passes) == (5000, 0)
    found = split.identity()
    assert (found.basis, dataset.read) == ("length, first 64 items", 64)
    known = json.loads(json.dumps(split.describe()))
    assert _split(Sized(5000), **known).identity() == found
    assert _split(Sized(4999)).identity() != found
    assert split.digest() == _split(Items(5000)).digest()
    assert split.identity() == found
    assert _split(Unsized(40)).rows == 40


def test_a_wrong_length_is_found_at_the_end_of_the_pass() -> None:
    """Each row of an epoch is drawn once, or the run says why not."""
    split = _split(Sized(50, spoken=60))
    with pytest.raises(RecipeError, match=r"ended after 50 rows, but 60 were .* returned by its __len__"):
        split.batch(torch.arange(60))


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
    [("sourced:Short", "ended after 47 rows, but 50 were counted"), ("sourced:Long", "continues after 50 rows")],
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


class Drawing:
    """Shuffles with the global generators: torch's as a pass begins, or all three at its items; lazy or at once."""

    def __init__(self, rows: int, *, how: str) -> None:
        self.rows, self.how = rows, how

    def __iter__(self) -> Iterator[Any]:
        if self.how == "at once":  # no generator function: drawn in iter() itself
            return iter([(torch.tensor([row / 100]), row) for row in torch.randperm(self.rows).tolist()])
        return self._each()

    def _each(self) -> Iterator[Any]:
        left = torch.randperm(self.rows).tolist() if self.how == "at the first item" else list(range(self.rows))
        while left:
            place = 0
            if self.how == "at each item":
                drawn = random.randrange(97) + np.random.randint(97) + int(torch.randint(97, ()))  # noqa: NPY002
                place = drawn % len(left)
            row = left.pop(place)
            yield torch.tensor([row / 100]), row


_HOW = ["at once", "at the first item", "at each item"]


def _epoch(how: str, *, world: int, epoch: int, skip: int = 0, batches: int = 99, seed: int = 5) -> list[list[int]]:
    """Return the rows of each global batch, over all ranks, as a loop draws them that seeds and draws at each step."""
    found: list[list[int]] = []
    for rank in range(world):
        split = _split(Drawing(64, how=how), rows=64, digest="")
        drawn = split.global_batches(batch_size=10, seed=seed, epoch=epoch, skip=skip)
        for number, indices in enumerate(islice(drawn, batches)):
            torch.manual_seed(1000 * rank + number)
            random.seed(1000 * rank + number)
            np.random.seed(1000 * rank + number)  # noqa: NPY002
            found += [[] for _ in range(number + 1 - len(found))]
            for piece, weight in micro_batches(indices, rank=rank, world=world, pieces=2):
                found[number] += _numbers(split.batch(piece)) if weight else []
                torch.rand(rank + 1), random.random(), np.random.rand()  # noqa: NPY002
    return [sorted(batch) for batch in found]


@pytest.mark.parametrize("how", _HOW)
@pytest.mark.parametrize("world", [2, 3])
def test_what_a_dataset_draws_is_the_same_on_every_rank(how: str, world: int) -> None:
    """Ranks that stand elsewhere in the global generators deal one order; epochs and seeds have others."""
    first = _epoch(how, world=world, epoch=1)
    assert sorted(chain.from_iterable(first)) == list(range(64))
    assert first == _epoch(how, world=1, epoch=1)
    other = [_epoch(how, world=world, epoch=2), _epoch(how, world=world, epoch=1, seed=6)]
    assert [sorted(chain.from_iterable(batches)) for batches in other] == [list(range(64))] * 2
    assert len({str(batches) for batches in [first, *other]}) == 3


@pytest.mark.parametrize("how", _HOW)
@pytest.mark.parametrize("skip", [1, 4, 6])
def test_a_resume_on_other_ranks_sees_the_rest(how: str, skip: int) -> None:
    """Two ranks take the first batches of an epoch, three the others: each row once, in the batch it would be in."""
    before = _epoch(how, world=2, epoch=3, batches=skip)
    after = _epoch(how, world=3, epoch=3, skip=skip)
    assert before + after == _epoch(how, world=1, epoch=3)
    assert sorted(chain.from_iterable(before + after)) == list(range(64))


@pytest.mark.parametrize("how", _HOW)
def test_count_and_evaluation_draw_a_fixed_stream(how: str) -> None:
    """The fingerprint does not hang on what was drawn before, and ranks that evaluate split one order."""
    torch.manual_seed(1)
    split = _split(Drawing(64, how=how))
    for _ in split.global_batches(batch_size=32, seed=5, epoch=4):
        torch.rand(3)
    other = _split(Drawing(64, how=how))
    assert (split.rows, split.digest()) == (64, other.digest())
    assert np.concatenate([*split.hashes()]).tolist() == np.concatenate([*other.hashes()]).tolist()
    seen: list[int] = []
    for rank in range(3):
        torch.manual_seed(rank)
        ranked = _split(Drawing(64, how=how), rows=64, digest="")
        for batch in ranked.batches(ranked.share(rank=rank, world=3), batch_size=5):
            torch.rand(rank)
            seen += _numbers(batch)
    assert sorted(seen) == list(range(64))


def test_the_dataset_leaves_the_global_generators_as_they_were() -> None:
    """Training draws what it would have drawn without it, also where the dataset seeds them, or raises."""

    class Seeds(Drawing):
        def __iter__(self) -> Iterator[Any]:
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            yield from super().__iter__()
            msg = "no more"
            raise ValueError(msg)

    def draws() -> list[float]:
        return [float(torch.rand(())), random.random(), np.random.rand()]  # noqa: NPY002

    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    expected = draws() + draws()
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    found = draws()
    split = _split(Seeds(64, how="at each item"), rows=65, digest="")
    split.batch(torch.arange(10))
    with pytest.raises(RecipeError, match="no more"):
        split.batch(torch.arange(65))
    assert found + draws() == expected


def test_reading_up_to_a_place_gives_signs_of_life() -> None:
    """They come at least every 1000 items, and what they draw does not disturb the pass."""
    read: list[int] = []
    dataset = Items(2500)
    split = _split(dataset, rows=2500, digest="")
    split.on_progress = lambda: read.append(dataset.read)
    indices = next(split.global_batches(batch_size=10, seed=0, epoch=1, skip=249))
    split.batch(indices)
    assert read[-1] == 2500
    assert np.diff([0, *read]).max() <= 1000

    rows = [(Drawing(300, how="at each item"), lambda: None), (Drawing(300, how="at each item"), random.random)]
    orders = []
    for drawing, progress in rows:
        split = _split(drawing, rows=300, digest="")
        split.on_progress = progress
        orders.append(_numbers(split.batch(torch.arange(300))))
    assert orders[0] == orders[1]
