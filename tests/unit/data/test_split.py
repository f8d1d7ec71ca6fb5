"""Rows are identified alike in every process, whatever items draw at random."""

from __future__ import annotations

import random
from typing import Any

import drawn
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from raymlops.data.dataset_split import DatasetSplit
from raymlops.data.prepare import Prepared, prepare
from raymlops.data.sampler import sampled_rows
from raymlops.data.split import TableSplit
from raymlops.errors import RecipeError, UsageError
from raymlops.recipe import RecipeBase


class Halves(Dataset[Any]):
    """Items of numbers that numpy does not know."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return {"x": torch.tensor([index, 1], dtype=torch.bfloat16), "y": torch.tensor(1.0)}


def seed() -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global one is what is seeded


def draws() -> list[float]:
    return [float(torch.rand(())), random.random(), float(np.random.random())]  # noqa: NPY002


@pytest.mark.parametrize("recipe", ["drawn:Augmented", "drawn:Fetched"])
def test_items_that_draw_at_random_are_the_same_data_every_time(tiny_project: Any, recipe: str) -> None:
    """Whatever was drawn before; other items are other data."""
    first = prepare(tiny_project(recipe=recipe)).data
    seed()
    assert prepare(tiny_project(recipe=recipe)).data == first
    assert first.notes == ()
    plain, other = tiny_project(recipe="drawn:Line"), tiny_project(recipe=recipe, config={"train_rows": 299})
    assert len({first.fingerprint, prepare(plain).data.fingerprint, prepare(other).data.fingerprint}) == 3


def test_hashing_leaves_the_generators_where_they_were(tiny_project: Any) -> None:
    """Training draws as if nothing had been hashed."""
    prepared = prepare(tiny_project(recipe="drawn:Augmented"))
    seed()
    expected = draws()
    seed()
    assert prepared.data.fingerprint
    assert draws() == expected


def test_items_that_nobody_can_seed_are_identified_by_their_number(tiny_project: Any) -> None:
    """And that is said."""
    first = prepare(tiny_project(recipe="drawn:Unseeded")).data
    assert prepare(tiny_project(recipe="drawn:Unseeded")).data == first
    other = prepare(tiny_project(recipe="drawn:Unseeded", config={"train_rows": 299})).data
    assert other.fingerprint != first.fingerprint
    (note,) = first.notes
    assert note.startswith("items of the train split differ each time they are read")
    assert note.endswith("identified by its length, not by its items")
    assert first.identified_by["train"] == "length"


def test_what_a_dataset_says_of_itself_counts_where_items_cannot_be_compared(tiny_project: Any) -> None:
    """As many rows from another start are other data."""
    first = prepare(tiny_project(recipe="drawn:Titled"))
    assert prepare(tiny_project(recipe="drawn:Titled")).data == first.data
    assert "by its length and its fingerprint()" in first.data.notes[0]
    other = DatasetSplit(drawn.Named(300, start=0.5), name="train", recipe=drawn.Titled())
    assert other.digest() != first.splits["train"].digest()
    assert other.identity().basis == first.data.identified_by["train"] == "length, fingerprint()"
    assert other.identity() != first.splits["train"].identity()
    changed = Prepared(drawn.Titled(), {"train": other}, {})
    then = Prepared(drawn.Titled(), {"train": first.splits["train"]}, {}).data
    assert changed.data_as(then.fingerprint, rows={"train": 300}).fingerprint != then.fingerprint
    assert other.describe() == {"kind": "dataset", "rows": 300, "fingerprint": "300 rows from 0.5"}


def test_a_fingerprint_that_is_no_text_is_refused() -> None:
    """It would be another one each time, such as an object's address."""
    items = drawn.Named(4)
    items.fingerprint = object  # type: ignore[method-assign, assignment]
    with pytest.raises(RecipeError, match=r"fingerprint\(\) of a Named returned a object"):
        DatasetSplit(items, name="train", recipe=drawn.Titled()).digest()


def test_items_of_halved_floats_are_hashed() -> None:
    """bfloat16 is what large datasets are kept in."""
    hashes = np.concatenate([*DatasetSplit(Halves(), name="train", recipe=RecipeBase()).hashes()])
    assert len(set(hashes.tolist())) == 40


def test_both_parts_of_a_complex_number_are_hashed() -> None:
    """A spectrum with another phase is another row."""
    rows = torch.tensor([[1 + 1j], [1 + 2j], [1 + 1j]])
    first, second, third = np.concatenate(
        [*DatasetSplit(TensorDataset(rows), name="train", recipe=RecipeBase()).hashes()]
    ).tolist()
    assert first == third != second


@pytest.mark.parametrize("recipe", ["tiny:Tiny", "drawn:Line", "broken:Items"])
def test_a_fingerprint_tells_the_same_data_from_other_data(tiny_project: Any, recipe: str) -> None:
    """The same data gives it again; other data does not."""
    then = prepare(tiny_project(recipe=recipe)).data
    prepared = prepare(tiny_project(recipe=recipe))
    assert prepared.data_as(then.fingerprint, rows=then.rows).fingerprint == then.fingerprint
    other = prepare(tiny_project(recipe=recipe, config={"validation_rows": 100}))
    assert other.data_as(then.fingerprint, rows=other.data.rows).fingerprint != then.fingerprint
    assert prepared.data_as("", rows={}) == prepared.data


def test_items_that_differ_are_compared_by_their_number(tiny_project: Any) -> None:
    """No fingerprint of them is ever made again, so that a run on as many rows resumes."""
    prepared = prepare(tiny_project(recipe="drawn:Unseeded"))
    then = "v2:of another pass"
    found = prepared.data_as(then, rows=prepared.data.rows)
    assert found.fingerprint == then
    assert found.notes[0].startswith("items of train differ each time they are read")
    assert prepared.data_as(then, rows={"train": 299}).fingerprint != then


@pytest.mark.parametrize(
    ("recipe", "fingerprint"),
    [
        ("tiny:Tiny", "v2:df46ac93abc50c148c5e1740ff2242eee17fa0d3fd97bb4751de499cec930d5d"),
        ("drawn:Line", "v2:242a1d22acbf208144e6a1fbc3d1285b19b70bf1c927d9ac99cb0390ec80b47e"),
        ("sourced:Iterated", "v2:04c385b6ee9a91985ba77da29af183dbd6ed3d66a688ab2aaa1c92d6f303597e"),
    ],
)
def test_a_fingerprint_of_release_0_1_is_compared_as_it_was_made(
    tiny_project: Any, recipe: str, fingerprint: str
) -> None:
    """A run that began then resumes, unless its data was changed."""
    config = {"train_rows": 2000, "validation_rows": 501}
    prepared = prepare(tiny_project(recipe=recipe, config=config))
    assert prepared.data_as(fingerprint, rows=prepared.data.rows).fingerprint == fingerprint
    other = prepare(tiny_project(recipe=recipe, config=config | {"train_rows": 1999}))
    for rows in (prepared.data.rows, other.data.rows):
        assert other.data_as(fingerprint, rows=rows).fingerprint != fingerprint


class Counted(Dataset[Any]):
    """Notes which items are read."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.read: set[int] = set()

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Any:
        self.read.add(index)
        return torch.tensor([float(index)])


class Said(Counted):
    """Says what it is."""

    def fingerprint(self) -> str:
        return "first"


def test_a_dataset_is_identified_by_few_of_its_items() -> None:
    """A pass over all would take hours where an item is decoded: 256 evenly spread ones are read, and the length."""
    items = Counted(5000)
    found = DatasetSplit(items, name="train", recipe=RecipeBase()).identity()
    assert len(items.read) <= 256 + 64
    assert {0, 4999} <= items.read
    assert found.basis == "length, 256 evenly spread items"
    assert DatasetSplit(Counted(4999), name="train", recipe=RecipeBase()).identity() != found
    assert DatasetSplit(Subset(items, range(4999, -1, -1)), name="x", recipe=RecipeBase()).identity() != found
    few = DatasetSplit(Counted(3), name="train", recipe=RecipeBase()).identity()
    assert few.basis == "length, 3 evenly spread items"


def test_random_items_stand_for_a_large_dataset() -> None:
    """Of those that are slow to read, the same ones each time; of what is in memory all rows."""
    items = Counted(5000)
    split = DatasetSplit(items, name="train", recipe=RecipeBase())
    hashes, share = split.some_hashes(at_least=1000)
    found = np.concatenate([*hashes])
    assert (len(found), share) == (1000, 0.2)
    assert len(items.read) <= 1001
    assert np.isin(found, np.concatenate([*split.hashes()])).all()
    again, _ = DatasetSplit(Counted(5000), name="train", recipe=RecipeBase()).some_hashes(at_least=1000)
    assert np.concatenate([*again]).tolist() == found.tolist()
    _, share = DatasetSplit(TensorDataset(torch.arange(5000)), name="x", recipe=RecipeBase()).some_hashes(at_least=9)
    assert share == split.some_hashes(at_least=5000)[1] == 1


class Oversampling(RecipeBase):
    rows = (3, 0, 3, 39, 3, 0)

    def sampler(self, train: Any, epoch: int) -> tuple[int, ...]:
        del train, epoch
        return self.rows


def test_a_row_that_a_sampler_draws_again_is_augmented_anew() -> None:
    """An oversampled class would see the same crop several times in an epoch; the order of the ranks is no matter."""
    split = DatasetSplit(drawn.Seedable(40), name="train", recipe=Oversampling())
    split.start_epoch(seed=5, epoch=2)
    rows = sampled_rows(split, seed=5, epoch=2)
    assert rows is not None
    batch: Any = split.batch(rows)
    shared: Any = split.batch(rows[1::2])
    first: Any = split.batch(torch.tensor([3, 0]))
    assert len(batch["x"].unique()) == len(rows)
    assert shared["x"].tolist() == batch["x"][1::2].tolist()
    assert first["x"].tolist() == batch["x"][:2].tolist()
    assert batch["y"].tolist() == [split.dataset[row]["y"] for row in Oversampling.rows]


class Sometimes(drawn.Seedable):
    """Draws for the items in the middle alone, as an augmentation of one class does."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return super().__getitem__(index) if 10 <= index < 20 else {"x": self.x[index], "y": 3 * self.x[index] + 1}


def test_an_item_that_alone_draws_is_the_same_in_any_batch() -> None:
    """However the rows are cut into batches, and whatever was read before, such as by another worker."""

    def read(*batches: list[int]) -> list[float]:
        split = DatasetSplit(Sometimes(40), name="train", recipe=Oversampling())
        split.start_epoch(seed=5, epoch=2)
        found: list[Any] = [split.batch(torch.tensor(rows)) for rows in batches]
        return torch.cat([batch["x"] for batch in found]).tolist()

    whole = read([0, 12, 15, 39])
    assert read([0, 12], [15, 39]) == whole
    assert read([0], [12], [15], [39]) == whole
    assert read([15, 39])[0] == whole[2]


def test_what_a_dataset_says_of_itself_always_counts() -> None:
    """Beside items that do not differ: those that are not read may have changed."""
    items = Said(1000)
    found = DatasetSplit(items, name="train", recipe=RecipeBase()).identity()
    assert found.basis == "length, fingerprint(), 256 evenly spread items"
    items.fingerprint = lambda: "second"  # type: ignore[method-assign]
    assert DatasetSplit(items, name="train", recipe=RecipeBase()).identity() != found


@pytest.mark.parametrize("fingerprint", ["v4:abc", "0123abc"])
def test_a_fingerprint_of_another_version_is_not_guessed_at(tiny_project: Any, fingerprint: str) -> None:
    """Nobody knows how it was made."""
    with pytest.raises(UsageError, match="made by another raymlops"):
        prepare(tiny_project()).data_as(fingerprint, rows={})


@pytest.mark.parametrize("recipe", ["drawn:Shuffled", "drawn:ShuffledItems", "drawn:ShuffledPasses"])
def test_a_process_that_sees_other_rows_is_refused(tiny_project: Any, recipe: str) -> None:
    """As many rows, but in an order of its own: one rank would train on another's validation rows."""
    project = tiny_project(recipe=recipe)
    driver = prepare(project)
    with pytest.raises(RecipeError, match=r"a train split of 300 rows in this process, but of other ones") as caught:
        prepare(project, state=driver.state, sources=driver.sources())
    assert "seed what datasets() draws" in str(caught.value.hint)


@pytest.mark.parametrize(
    "recipe",
    ["tiny:Tiny", "drawn:Line", "drawn:Augmented", "drawn:Fetched", "drawn:Unseeded", "drawn:Titled", "broken:Items"],
)
def test_a_process_that_sees_the_same_rows_is_not(tiny_project: Any, recipe: str) -> None:
    """Items may draw whatever they like."""
    project = tiny_project(recipe=recipe, config={"train_rows": 60, "validation_rows": 20})
    driver = prepare(project)
    assert prepare(project, state=driver.state, sources=driver.sources()).data.rows == driver.data.rows


def test_a_sample_of_wide_rows_has_fewer_of_them() -> None:
    """Of rows of 1 MB 64 fit: one of each three of 200 is 67; of narrow ones all are taken."""
    recipe = RecipeBase()
    wide = TableSplit({"x": np.zeros((200, 1 << 17))}, name="train", recipe=recipe).sample(about_rows=150)
    narrow = TableSplit({"x": np.zeros(200)}, name="train", recipe=recipe).sample(about_rows=150)
    assert (len(wide["x"]), len(narrow["x"])) == (67, 200)


class Large(Dataset[Any]):
    """Items of 16 MB."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return torch.full((1 << 22,), float(index))


def test_large_items_are_hashed_a_few_at_a_time() -> None:
    """64 MB hold four of them; however many, a row's hash is the same."""
    split = DatasetSplit(Large(), name="train", recipe=RecipeBase())
    chunks = list(split.hashes())
    assert [len(chunk) for chunk in chunks] == [4, 2]
    last = DatasetSplit(Subset(Large(), [4, 5]), name="x", recipe=RecipeBase())
    assert chunks[1].tolist() == np.concatenate([*last.hashes()]).tolist()
