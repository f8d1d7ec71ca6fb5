"""A recipe's splits are checked, fitted and drawn by index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny import Tiny

from raymlops.arrays import Column
from raymlops.data.long_passes import begin_pass
from raymlops.data.prepare import prepare
from raymlops.data.split import TableSplit
from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase
from raymlops.signature import Signature


def test_prepare_fits_on_the_training_split_alone(tiny_project: Any) -> None:
    """The fitted mean is that of the training rows, without the missing ones."""
    prepared = prepare(tiny_project())
    width = prepared.splits["train"].columns["width"]
    assert prepared.state["width_mean"] == pytest.approx(np.nanmean(width))
    assert prepared.recipe.state == prepared.state
    assert prepared.data.rows == {"train": 300, "validation": 101, "test": 300}


def test_a_known_state_is_not_fitted_again(tiny_project: Any) -> None:
    """A worker or a replica takes over what the first fit learnt."""
    state = {"colours": ["red"], "width_mean": 1.0, "width_sd": 2.0}
    assert prepare(tiny_project(), state=state).state == state


def test_a_batch_is_what_a_request_would_become(tiny_project: Any) -> None:
    """Rows by index, in order, equal encode() of those rows, with the label beside them."""
    prepared = prepare(tiny_project())
    split = prepared.splits["validation"]
    batch = split.batch(torch.tensor([7, 2]))
    rows = {name: values[[7, 2]] for name, values in split.columns.items() if name != "label"}
    expected = prepared.recipe.encode(rows)
    assert torch.equal(batch["numbers"], expected["numbers"])
    assert batch["label"].tolist() == split.columns["label"][[7, 2]].tolist()


def test_the_fingerprint_knows_values_and_order(tiny_project: Any) -> None:
    """Same data, same fingerprint; other rows or another order, another one."""
    table = {"x": np.arange(4.0)}

    def fingerprint(values: Any) -> list[int]:
        return np.concatenate([*TableSplit({"x": values}, name="train", recipe=RecipeBase()).hashes()]).tolist()

    assert fingerprint(table["x"]) == fingerprint(np.arange(4))
    assert fingerprint(table["x"][::-1]) == fingerprint(table["x"])[::-1]
    first = prepare(tiny_project()).data.fingerprint
    assert prepare(tiny_project()).data.fingerprint == first
    assert prepare(tiny_project(config={"data_seed": 8})).data.fingerprint != first


def test_a_dataset_is_collated_and_hashed(tiny_project: Any) -> None:
    """A torch dataset gives batches of its items, and a hash for each."""
    split = prepare(tiny_project(recipe="broken:Items")).splits["train"]
    x, y = split.batch(torch.tensor([3, 1]))
    assert x.shape == (2, 3)
    assert y.tolist() == pytest.approx(x.sum(dim=1).tolist())
    assert len(set(np.concatenate([*split.hashes()]).tolist())) == 300


class Words(RecipeBase):
    """Pads its rows to the longest of what it is given."""

    encoded = 0
    """Rows of all calls of ``encode``."""

    def signature(self) -> Signature:
        return Signature(inputs=(Column("ids", "int", shape=(None,)),), outputs=(Column("y", "float"),))

    def encode(self, columns: Any) -> Any:
        self.encoded += len(columns["ids"])
        rows = [torch.as_tensor(ids) for ids in columns["ids"]]
        return {"ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}


class Lengths(Words):
    """Returns text for each row."""

    def encode(self, columns: Any) -> Any:
        return {"lengths": [str(len(ids)) for ids in columns["ids"]]}


class Means(Words):
    """Has one number for each row."""

    def encode(self, columns: Any) -> Any:
        self.encoded += len(columns["ids"])
        return {"mean": torch.tensor([float(ids.mean()) for ids in columns["ids"]])}


def ragged(lengths: list[int], recipe: RecipeBase) -> TableSplit:
    """Return rows of ones of these lengths."""
    ids = np.empty(len(lengths), dtype=object)
    ids[:] = [np.ones(length, dtype=np.int64) for length in lengths]
    return TableSplit({"ids": ids}, name="train", recipe=recipe)


@pytest.mark.parametrize("rows", [9, 300, 70_000])
def test_rows_of_different_width_are_encoded_by_batch(rows: int) -> None:
    """Where encode() pads to the longest row of what it is given, each batch is padded for itself, however many rows.

    That is found out from 256 rows, and eight of them one by one: no pass over all rows is thrown away.
    """
    recipe = Words()
    split = ragged([1, *[2] * (rows - 2), 50], recipe)
    assert split.batch(torch.tensor([0, 1]))["ids"].shape == (2, 2)
    assert split.batch(torch.tensor([0, rows - 1]))["ids"].shape == (2, 50)
    assert recipe.encoded <= 256 + 8 + 4
    split = ragged([1] * (rows - 1) + [3], Lengths())
    assert split.batch(torch.tensor([0, rows - 1]))["lengths"] == ["1", "3"]


def test_one_row_of_another_width_is_enough() -> None:
    """Row 5 of 10,000 is in no sample: all are encoded, and then batch by batch."""
    split = ragged([1] * 5 + [50] + [1] * 9994, Words())
    assert split.batch(torch.tensor([0, 1]))["ids"].shape == (2, 1)
    assert split.batch(torch.tensor([0, 5]))["ids"].shape == (2, 50)


def test_a_pass_over_a_table_gives_signs_of_life() -> None:
    """After each 16,384 encoded rows, and in hashing."""
    split = ragged([1] * 40_000, recipe := Means())
    alive: list[None] = []
    split.on_progress = lambda: alive.append(None)
    split.batch(torch.arange(3))
    assert len(alive) == 3
    assert recipe.encoded <= 40_000 + 256 + 8
    split.digest()
    assert len(alive) == 4


def test_a_long_pass_is_logged_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """How far it is, of how many rows."""
    now = [0.0]
    done = begin_pass("encoding", ragged([1] * 3000, Means()), clock=lambda: now[0])
    for second in (5.0, 11.0, 12.0, 22.0):
        now[0] = second
        done(int(second) * 100)
    assert caplog.messages == [
        "encoding the train split: 1,100 of 3,000 rows",
        "encoding the train split: 2,200 of 3,000 rows",
    ]


@pytest.mark.parametrize(
    ("recipe", "config", "message"),
    [
        ("tiny:Tiny", {"validation_rows": 0}, "validation split has no rows"),
        ("sourced:Loads", {}, "train split is a DataLoader, which makes its own batches"),
        ("sourced:Once", {}, "train split is a list_iterator, which can be read only once"),
        ("sourced:Number", {}, "train split is a int, which has neither rows by index nor an iterator"),
        ("sourced:FromParquet", {"path": "nowhere"}, "'nowhere', which does not exist"),
        ("broken:NotNullable", {}, "'width' of the signature is a float, but in the train table it is missing"),
    ],
)
def test_splits_that_cannot_be_trained_on_are_refused(
    tiny_project: Any, recipe: str, config: dict[str, Any], message: str
) -> None:
    """The error names the recipe, the split and what to do."""
    with pytest.raises(RecipeError, match=message):
        prepare(tiny_project(recipe=recipe, config=config))


def test_an_epoch_goes_on_where_it_was(tiny_project: Any) -> None:
    """The batches that are left are those of the whole epoch."""
    split = prepare(tiny_project()).splits["train"]
    whole = [batch.tolist() for batch in split.global_batches(batch_size=64, seed=0, epoch=2)]
    left = [batch.tolist() for batch in split.global_batches(batch_size=64, seed=0, epoch=2, skip=3)]
    assert left == whole[3:]


def test_another_process_must_see_as_many_rows(tiny_project: Any) -> None:
    """What a worker's ``datasets()`` returns is held against what the driver's returned."""
    driver = prepare(tiny_project())
    assert prepare(tiny_project(), state=driver.state, sources=driver.sources()).data == driver.data
    project = tiny_project(config={"train_rows": 299})
    with pytest.raises(
        RecipeError, match=r"train split of 299 rows \(table\) in this process, but of 300 rows \(table\)"
    ):
        prepare(project, state=driver.state, sources=driver.sources())


def test_encode_is_given_what_a_request_brings(tiny_project: Any) -> None:
    """A recipe whose encode() reads the label fails in training and not first in a replica."""
    split = prepare(tiny_project(recipe="broken:ReadsTheLabel")).splits["train"]
    with pytest.raises(RecipeError, match=r"ReadsTheLabel\.encode\(\) raised KeyError: 'label'"):
        split.batch(torch.tensor([0]))


class Masked(Tiny):
    """Its batch holds a mask and a number that are none of its rows."""

    def encode(self, columns: Any) -> dict[str, torch.Tensor]:
        return {"mask": torch.ones(7, 7), "scale": torch.tensor(2.0), **super().encode(columns)}


class Spans(NamedTuple):
    """A batch that is read by attribute."""

    length: torch.Tensor


class Named(Tiny):
    """Its batch is a named tuple."""

    label = None

    def encode(self, columns: Any) -> Spans:
        return Spans(torch.as_tensor(columns["length"]))


def test_what_holds_for_all_rows_stays_whole(tiny_project: Any) -> None:
    """Such batches are encoded one by one: no row of a mask is taken for a row of the table."""
    split = prepare(replace(tiny_project(), recipe_class=Masked)).splits["validation"]
    batch = split.batch(torch.tensor([100, 2]))
    assert (batch["mask"].shape, batch["scale"].item(), len(batch["numbers"])) == ((7, 7), 2.0, 2)


def test_a_named_tuple_stays_one_in_every_batch(tiny_project: Any) -> None:
    """Encoded as a whole and selected, or row by row."""
    split = prepare(replace(tiny_project(), recipe_class=Named)).splits["validation"]
    assert split.batch(torch.tensor([1, 3])).length.shape == (2,)
    assert split.encoded is not None
