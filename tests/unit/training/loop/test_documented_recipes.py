"""The recipes of ``docs/recipes.md`` train."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_training import run_local
from tiny import Tiny
from torch import nn
from torch.utils.data import WeightedRandomSampler

from raymlops import Callback

PAGE = Path(__file__).parents[4] / "docs" / "recipes.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("(")[0].removeprefix("class "))
def test_what_the_page_shows_trains(
    tiny_project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str
) -> None:
    """Each is a change of a recipe that learns."""
    monkeypatch.chdir(tmp_path)
    project = tiny_project(epochs=3)
    names = {"Base": Tiny, "Callback": Callback, "torch": torch, "nn": nn, "np": np}
    names["WeightedRandomSampler"] = WeightedRandomSampler
    torch.save(project.recipe(state={"colours": ["blue", "green", "red"]}).model().state_dict(), "pretrained.pt")
    exec(block, names)
    (recipe,) = (found for name, found in names.items() if block.startswith(f"class {name}("))
    result = run_local(dataclasses.replace(project, recipe_class=recipe))
    assert result.epochs == 3
    assert result.metrics["validation/auc"] > 0.7
