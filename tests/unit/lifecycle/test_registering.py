"""What goes into a bundle is the same whether a split lies in memory or is streamed from files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sourced
import torch
from tiny import make_table

from raymlops.bundle.load import load
from raymlops.bundle.sketch import sketch
from raymlops.config.load import load_data
from raymlops.lifecycle.registering import _example, _profiles, _sketch, register
from raymlops.project import bind
from raymlops.training.data import Memory, prepare
from raymlops.training.run import load_weights, train
from raymlops.training.streamed import ParquetSplit


@pytest.fixture
def both(tmp_path):
    """The same 120 rows as all three splits, streamed and as a table."""
    path = sourced.write_parquet(tmp_path / "rows", make_table(120, seed=3), files=2, row_group_rows=25)
    recipe = {"import": sourced.AllParquet, "config": {"path": path}}
    project = bind(load_data({"project": {"name": "p"}, "recipe": recipe}))
    streamed, table = prepare(project, memory=Memory(whole_bytes=0)), prepare(project)
    assert isinstance(streamed.splits["train"], ParquetSplit)
    return streamed, table


def test_the_example_is_the_first_rows(both):
    streamed, table = both
    assert _example(streamed) == _example(table)
    assert len(_example(table)) == 2


def test_profiles_are_those_of_the_rows(both):
    """120 rows are few enough for a sample of all of them."""
    profiles = []
    for prepared in both:
        torch.manual_seed(0)
        profiles.append(_profiles(prepared, prepared.recipe.model().eval()))
    assert set(profiles[0]) == {"train", "validation"}
    assert json.dumps(profiles[0]) == json.dumps(profiles[1])


def test_the_sketch_of_rows_is_found_in_one_pass(both):
    """Chunk by chunk it comes to the sketch of all hashes at once."""
    streamed, table = both
    expected = sketch(table.splits["train"].row_hashes())
    assert np.array_equal(_sketch(streamed.splits["train"]), expected)
    assert np.array_equal(_sketch(table.splits["train"]), expected)


@pytest.mark.parametrize("recipe", ["drawn:Augmented", "drawn:Unseeded", "drawn:Masked", "drawn:Reordered"])
def test_what_was_trained_can_be_registered(storage_path, recipe):
    """Items that draw at random, buffers of infinity, and a fit that gives another state each time forfeit no run."""
    project = bind(
        load_data(
            {
                "project": {"name": "p"},
                "recipe": {"import": recipe, "config": {"train_rows": 300, "validation_rows": 100}},
                "train": {"epochs": 1, "threads_per_worker": 1},
                "storage": {"path": str(storage_path)},
            }
        )
    )
    run = train(project)
    version = register(project.spec, run.run_id)
    loaded = load(version.bundle.uri, version.bundle.digest)
    weights, state = load_weights(run.weights_uri)
    assert loaded.recipe.state == state
    assert {name: tensor.isinf().sum() for name, tensor in loaded.model.state_dict().items()} == {
        name: tensor.isinf().sum() for name, tensor in weights.items()
    }
