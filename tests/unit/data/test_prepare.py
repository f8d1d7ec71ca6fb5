"""A recipe's splits are checked, fitted and drawn by index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny import Tiny

from raymlops.data.prepare import prepare
from raymlops.data.split import TableSplit
from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase


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


def test_rows_of_different_width_are_encoded_by_batch() -> None:
    """Where encode() pads to the longest row of what it is given, each batch is padded for itself."""

    class Words(RecipeBase):
        def signature(self) -> Any:
            from raymlops.arrays import Column
            from raymlops.signature import Signature

            return Signature(inputs=(Column("ids", "int", shape=(None,)),), outputs=(Column("y", "float"),))

        def encode(self, columns: Any) -> Any:
            rows = [torch.as_tensor(ids) for ids in columns["ids"]]
            return {"ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}

    lengths = [1] * 65_536 + [3]
    ids = np.empty(len(lengths), dtype=object)
    ids[:] = [np.ones(length, dtype=np.int64) for length in lengths]
    split = TableSplit({"ids": ids}, name="train", recipe=Words())
    assert split.batch(torch.tensor([0, 1]))["ids"].shape == (2, 1)
    assert split.batch(torch.tensor([0, 65_536]))["ids"].shape == (2, 3)
    encode = staticmethod(lambda columns: {"lengths": [str(len(ids)) for ids in columns["ids"]]})
    split = TableSplit({"ids": ids}, name="train", recipe=type("Texts", (Words,), {"encode": encode})())
    assert split.batch(torch.tensor([0, 65_536]))["lengths"] == ["1", "3"]


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
