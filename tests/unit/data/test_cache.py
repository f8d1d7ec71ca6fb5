"""Data is prepared again exactly where another configuration would prepare other data."""

from __future__ import annotations

import copy
import json

import drawn
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sourced
from tiny import Tiny, TinyConfig, make_table

from raymlops.config.load import load_data
from raymlops.data.cache import DataCache, WatchedConfig
from raymlops.errors import RecipeError
from raymlops.project import bind


@pytest.fixture
def project():
    data = {"project": {"name": "p"}, "recipe": {"import": Tiny, "config": {"train_rows": 60, "validation_rows": 30}}}
    return bind(load_data(data))


@pytest.mark.parametrize(
    ("params", "times"),
    [
        ({"recipe.config.hidden": 8, "train.lr": 0.1}, 1),
        ({"recipe.config.train_rows": 70}, 2),
        ({"recipe.config.data_seed": 8}, 2),
        ({"train.seed": 1}, 2),
    ],
)
def test_only_what_the_data_depends_on_prepares_it_again(project, params, times):
    cache = DataCache()
    cache.get(project)
    cache.get(project.with_params(params))
    assert cache.prepared == times


def test_a_trial_trains_on_the_tables_that_it_draws(project, tmp_path):
    """A sweep may search train.tables: each choice has rows of its own."""
    cache, spreads = DataCache(), []
    for value in (1.0, 100.0):
        folder = tmp_path / f"by {value:g}"
        folder.mkdir()
        for split in ("train", "validation", "test"):
            columns = make_table(30, seed=1)
            columns["length"] *= value
            pq.write_table(pa.table(columns), folder / f"{split}.parquet")
        splits = cache.get(project.with_params({"train.tables": str(folder)})).splits
        spreads.append(float(splits["train"].columns["length"].std()))
    assert spreads[1] == pytest.approx(100 * spreads[0])


def test_the_next_trial_gets_the_same_rows_and_a_recipe_of_its_own(project):
    cache = DataCache()
    first, second = cache.get(project), cache.get(project.with_params({"recipe.config.hidden": 8}))
    assert second.splits is first.splits
    assert (second.recipe.config.hidden, second.state) == (8, first.state)
    assert type(second.recipe.config) is TinyConfig


def test_a_field_that_is_read_only_later_counts_from_then_on(project):
    cache = DataCache()
    cache.get(project)
    watched = cache._entry.watched
    assert watched.hidden == 16
    cache.get(project.with_params({"recipe.config.hidden": 8}))
    assert cache.prepared == 2


@pytest.mark.parametrize("reading", [lambda config: config.model_dump(), repr, hash, copy.copy, list, lambda c: c == 1])
def test_reading_the_whole_configuration_reads_every_field(reading):
    watched = WatchedConfig(TinyConfig())
    reading(watched)
    assert watched.read_fields() == set(TinyConfig.model_fields)


def test_the_stand_in_passes_for_the_configuration():
    watched = WatchedConfig(TinyConfig(hidden=3))
    assert isinstance(watched, TinyConfig)
    assert watched.hidden == 3
    assert watched.read_fields() == {"hidden"}


def test_what_one_process_found_out_spares_another_the_search(tmp_path):
    """Files that the driver listed are taken over where the data is the same, and looked for anew where it is not."""
    files = [
        sourced.write_parquet(tmp_path / name, make_table(60, seed=1), files=1, row_group_rows=20) for name in "ab"
    ]
    data = {"project": {"name": "p"}, "recipe": {"import": sourced.AllParquet, "config": {"path": files[0]}}}
    project = bind(load_data(data))
    driver = DataCache()
    driver.get(project)
    shared = json.loads(json.dumps(driver.share()))
    assert shared["key"]["config"] == {"path": files[0]}
    sourced.LOOKED.clear()
    trial = DataCache()
    trial.get(project.with_params({"recipe.config.hidden": 8}), shared=shared)
    assert (sourced.LOOKED, trial.prepared) == ([], 1)
    trial.get(project.with_params({"recipe.config.path": files[1]}), shared=shared)
    assert (sourced.LOOKED, trial.prepared) == ([files[1]], 2)


def test_a_trial_whose_data_differ_from_the_sweeps_fails():
    """Its rows are as many, in an order of its own: it would be judged on rows that others train on."""
    shuffled = bind(load_data({"project": {"name": "p"}, "recipe": {"import": drawn.Shuffled}}))
    driver = DataCache()
    driver.get(shuffled)
    shared = json.loads(json.dumps(driver.share()))
    with pytest.raises(RecipeError, match="but of other ones on the driver"):
        DataCache().get(shuffled, shared=shared)


def test_a_trial_that_goes_on_takes_the_state_of_its_weights():
    """Another fit would belong to other weights; the next trial is not given it."""
    reordered = bind(load_data({"project": {"name": "p"}, "recipe": {"import": drawn.Reordered}}))
    cache = DataCache()
    first = cache.get(reordered)
    state = {**first.state, "colours": first.state["colours"][::-1]}
    again = cache.get(reordered, state=state)
    assert again.state == again.recipe.state == again.splits["train"].recipe.state == state
    assert cache.get(reordered, state=first.state).state == first.state
    assert cache.get(reordered).state["colours"] != state["colours"]
