"""What the driver prepared is what another process draws from, without a copy and without preparing anything."""

from __future__ import annotations

import pickle
import platform
from dataclasses import replace

import numpy as np
import pytest
import shared_recipes
import sourced
import torch
from shared_recipes import Kinds, Padded, Rows, Scaled, Unpicklable
from tiny import Tiny, make_table

from raymlops.config.load import load_data
from raymlops.data.cache import DataCache
from raymlops.data.prepare import Memory, prepare
from raymlops.project import bind

INDICES = torch.tensor([4, 0, 2])


def project_of(recipe, **config):
    rows = {"train_rows": 60, "validation_rows": 30, "test_rows": 10}
    return bind(load_data({"project": {"name": "p"}, "recipe": {"import": recipe, "config": rows | config}}))


def travelled(shared):
    """Return it as Ray gives it to a process: arrays out of band, over memory that cannot be written."""
    buffers = []
    data = pickle.dumps(shared, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])


def both(project):
    """Return the driver's prepared data and that of a process which was given it."""
    driver = DataCache()
    first = driver.get(project)
    cache = DataCache(travelled(driver.shared_data()))
    return first, cache.get(project), cache


def assert_equal_batches(one, other):
    if isinstance(one, dict):
        assert list(one) == list(other)
        one, other = list(one.values()), list(other.values())
    for left, right in zip(one, other, strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


@pytest.mark.parametrize("recipe", [Tiny, Padded])
def test_a_table_gives_the_same_batches_and_columns(recipe):
    first, second, cache = both(project_of(recipe))
    assert cache.prepared == 0
    assert (second.state, second.sources()) == (first.state, first.sources())
    for part in ("train", "validation", "test"):
        assert_equal_batches(first.splits[part].batch(INDICES), second.splits[part].batch(INDICES))
        columns = second.splits[part].columns
        assert list(columns) == list(first.splits[part].columns)
        for name, values in first.splits[part].columns.items():
            np.testing.assert_array_equal(columns[name], values)
    assert second.data == first.data


def test_numbers_are_mapped_and_text_comes_to_life_when_it_is_asked_for():
    _, second, _ = both(project_of(Tiny))
    split = second.splits["train"]
    packed = split._packed
    assert "columns" not in vars(split)
    for values, buffers in (
        (split.encoded["numbers"].numpy(), packed.encoded.buffers),
        (split.columns["length"], packed.columns.buffers),
    ):
        assert sum(np.shares_memory(values, buffer) for buffer in buffers) == 1
    assert not split.columns["length"].flags.writeable


def test_what_is_drawn_is_a_copy():
    """A step may write into its batch; the data itself lies where nobody can."""
    _, second, _ = both(project_of(Tiny))
    split = second.splits["train"]
    before = split.batch(INDICES)["numbers"].clone()
    split.batch(INDICES)["numbers"].zero_()
    split.batch(torch.arange(split.rows))["numbers"].zero_()
    split.take(INDICES)["length"][:] = 0
    assert torch.equal(split.batch(INDICES)["numbers"], before)


def test_rows_are_encoded_once_for_all_processes(tmp_path):
    path = sourced.write_parquet(tmp_path / "rows", make_table(60, seed=1), files=1, row_group_rows=20)
    project = project_of(sourced.AllParquet, path=path)
    driver = DataCache()
    driver.get(project)
    shared = travelled(driver.shared_data())
    sourced.ENCODED.clear()
    sourced.LOOKED.clear()
    second = DataCache(shared).get(project)
    second.splits["train"].batch(INDICES)
    second.splits["validation"].batch(INDICES)
    assert (sourced.ENCODED, sourced.LOOKED) == ([], [])
    assert second.splits["train"].describe() == driver.get(project).splits["train"].describe()


def test_files_that_are_streamed_are_read_by_each_process_but_listed_and_fitted_by_none(tmp_path):
    path = sourced.write_parquet(tmp_path / "rows", make_table(60, seed=1), files=2, row_group_rows=10)
    project = project_of(sourced.AllParquet, path=path)
    driver = DataCache()
    driver.get(project)
    streamed = prepare(project, memory=Memory(whole_bytes=0))
    driver._entry.prepared = streamed
    shared = travelled(driver.shared_data())
    assert shared.parts == {}
    sourced.LOOKED.clear()
    second = DataCache(shared).get(project)
    assert (sourced.LOOKED, second.state) == ([], streamed.state)
    assert_equal_batches(second.splits["train"].batch(INDICES), streamed.splits["train"].batch(INDICES))


def test_tensors_are_mapped_whatever_their_type(monkeypatch):
    monkeypatch.setitem(Kinds.made, "dataset", shared_recipes.tensors())
    shared_recipes.CALLS.clear()
    first, second, _ = both(project_of(Kinds))
    assert shared_recipes.CALLS == ["datasets", "fit"]
    assert_equal_batches(first.splits["train"].batch(INDICES), second.splits["train"].batch(INDICES))
    batch = second.splits["train"].batch(INDICES)
    batch[0].zero_()
    assert_equal_batches(first.splits["train"].batch(INDICES), second.splits["train"].batch(INDICES))


def test_a_small_dataset_of_another_kind_is_pickled(monkeypatch):
    monkeypatch.setitem(Kinds.made, "dataset", Rows(6))
    shared_recipes.CALLS.clear()
    _, second, _ = both(project_of(Kinds))
    assert shared_recipes.CALLS == ["datasets", "fit"]
    assert second.splits["train"].batch(INDICES).tolist() == [4, 0, 2]


def test_a_pickled_dataset_stays_on_the_machine_that_made_it(monkeypatch):
    """It may name files there."""
    monkeypatch.setitem(Kinds.made, "dataset", Rows(6))
    project = project_of(Kinds)
    driver = DataCache()
    driver.get(project)
    shared = driver.shared_data()
    assert shared.host == platform.node()
    elsewhere = DataCache(replace(shared, host="elsewhere"))
    elsewhere.get(project)
    assert elsewhere.prepared == 1


@pytest.mark.parametrize("dataset", [Rows(6, ballast=17 << 20), Unpicklable(6)], ids=["large", "unpicklable"])
def test_what_is_large_or_cannot_be_pickled_each_process_prepares(monkeypatch, dataset):
    monkeypatch.setitem(Kinds.made, "dataset", dataset)
    driver = DataCache()
    driver.get(project_of(Kinds))
    assert driver.shared_data() is None


@pytest.mark.parametrize(
    ("recipe", "params", "times"),
    [
        (Tiny, {"recipe.config.hidden": 8, "train.lr": 0.1}, 0),
        (Tiny, {"recipe.config.train_rows": 70}, 1),
        (Tiny, {"train.seed": 1}, 1),
        (Scaled, {"recipe.config.dropout": 0.5}, 0),
        (Scaled, {"recipe.config.hidden": 8}, 1),
    ],
)
def test_it_is_taken_only_where_the_same_would_be_prepared(recipe, params, times):
    """What ``encode`` reads counts too, which on the driver has not happened before it is shared."""
    project = project_of(recipe)
    driver = DataCache()
    driver.get(project)
    cache = DataCache(travelled(driver.shared_data()))
    other = project.with_params(params)
    found, expected = cache.get(other), prepare(other)
    assert cache.prepared == times
    assert_equal_batches(found.splits["train"].batch(INDICES), expected.splits["train"].batch(INDICES))
    cache.get(project)
    assert cache.prepared == times
    assert found.recipe.config == other.recipe_config


def test_its_size_is_that_of_its_arrays(monkeypatch):
    monkeypatch.setitem(Kinds.made, "dataset", shared_recipes.tensors())
    driver = DataCache()
    driver.get(project_of(Kinds))
    shared = driver.shared_data()
    # Three splits of 6 rows: two floats of four bytes, one number of two.
    assert sum(buffer.nbytes for part in shared.parts.values() for buffer in part.packed.buffers) == 3 * 6 * (2 * 4 + 2)
    assert 180 < shared.size_bytes < 3000
