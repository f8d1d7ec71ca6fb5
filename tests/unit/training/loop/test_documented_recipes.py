"""The recipes of ``docs/recipes.md`` and ``docs/needs.md`` train, and so do the settings of the latter."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from local_training import run_local
from own_ways import Ragged
from ruamel.yaml import YAML
from tiny import Tiny
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, WeightedRandomSampler

from raymlops import Callback
from raymlops.arrays import Column
from raymlops.data.prepare import prepare
from raymlops.recipe import Splits
from raymlops.training.preflight import try_model

DOCS = Path(__file__).parents[4] / "docs"
NEEDS = (DOCS / "needs.md").read_text(encoding="utf-8")
BLOCKS = [
    block
    for text in ((DOCS / "recipes.md").read_text(encoding="utf-8"), NEEDS)
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
]
SETTINGS = re.findall(r"`train: (\{.*?\})`", NEEDS)
NAMES: dict[str, Any] = {"Base": Tiny, "Items": Ragged, "Splits": Splits, "NamedTuple": NamedTuple, "Dataset": Dataset}
NAMES |= {"torch": torch, "nn": nn, "np": np, "pad_sequence": pad_sequence}
NAMES |= {"WeightedRandomSampler": WeightedRandomSampler, "Callback": Callback}


def recipe_in(block: str) -> str:
    """Return the name of the recipe, which is the last class."""
    return re.findall(r"^class (\w+)", block, flags=re.MULTILINE)[-1]


@pytest.mark.parametrize("block", BLOCKS, ids=recipe_in)
def test_what_the_pages_show_trains_and_answers(
    tiny_project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str
) -> None:
    """Each is a change of a recipe that learns."""
    monkeypatch.chdir(tmp_path)
    names = dict(NAMES)
    exec(block, names)
    recipe = names[recipe_in(block)]
    assert isinstance(recipe, type)
    items = issubclass(recipe, Ragged)
    project = tiny_project(epochs=3, **({"recipe": "own_ways:Ragged", "config": {"train_rows": 100}} if items else {}))
    if not items:
        weights = project.recipe(state={"colours": ["blue", "green", "red"]}).model().state_dict()
        torch.save(weights, "pretrained.pt")
    project = dataclasses.replace(project, recipe_class=recipe)
    try_model(project, prepare(project), device="cpu", distributed=False)
    result = run_local(project)
    assert result.epochs == 3
    assert items or result.metrics["validation/auc"] > 0.7


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_the_table_sets_trains(tiny_project: Any, settings: str) -> None:
    """But for what takes GPUs or a run that there is not; that is valid."""
    train = YAML(typ="safe").load(settings)
    epochs = None if "max_steps" in train else 3
    project = tiny_project(**{"epochs": epochs, "shard_min_params": 100} | train)  # TinyModel's layers have 145
    if not {"init_from", "gpus_per_worker"} & train.keys():
        result = run_local(project)
        assert result.metrics["validation/auc"] > 0.5
        assert result.steps == train.get("max_steps", 12 if "drop_last" in train else 15)


def test_every_need_has_its_lines() -> None:
    """Each row names settings, a block, an example or a column, and every block is named."""
    rows = [row.split(" | ") for row in NEEDS.splitlines() if row.startswith("| ")][2:]
    assert len(rows) >= 22
    assert all("`" in lines for _, lines in rows)
    named = set(re.findall(r"`(\w+)`", "".join(lines for _, lines in rows)))
    assert {recipe_in(block) for block in BLOCKS if block in NEEDS} <= named
    for column in re.findall(r"`(Column\(.*?\))`[:,; |]", NEEDS):
        assert isinstance(eval(column, {"Column": Column}), Column)
