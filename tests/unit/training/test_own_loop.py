"""Settings that only the default loop applies are told of where a recipe's own loop does not read them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from raymlops.config.load import load_data
from raymlops.config.train import TrainSection
from raymlops.data.prepare import prepare
from raymlops.training.own_loop import APPLIED, unused_settings
from raymlops.training.preflight import preflight


def test_a_run_says_which_settings_have_no_effect(tiny_project: Any) -> None:
    """The loop has a rate of its own, and neither averages nor clips; the default loop does."""
    settings = {"lr": 0.02, "ema": 0.99, "clip_norm": 1.0}
    told: list[str] = []
    project = tiny_project(recipe="watched:OwnLoop", **settings)
    preflight(project, prepare(project), notice=told.append)
    (text,) = told
    assert "train.lr (0.02), train.ema (0.99), train.clip_norm (1.0)" in text
    told.clear()
    project = tiny_project(**settings)
    preflight(project, prepare(project), notice=told.append)
    assert told == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("lr = 0.1  # lr", "train.lr (searched by the sweep), train.precision (bf16)"),
        ("Adam(model.parameters(), lr=ctx.spec.lr)", "train.precision (bf16)"),
        ("ctx.parallel(model); getattr(ctx.spec, 'lr')", ""),
        ("ctx.spec.precision", "train.lr (searched by the sweep)"),
    ],
)
def test_what_the_code_reads_is_not_told(code: str, expected: str) -> None:
    """As an attribute, or by its name; ``parallel`` applies the precision."""
    space = {"train.lr": {"float": [0.01, 0.1]}}
    data = {
        "project": {"name": "p"},
        "recipe": {"import": "m:R"},
        "sweep": {"space": space, "metric": "validation/loss"},
    }
    spec = load_data({**data, "train": {"precision": "bf16"}}).spec
    text = unused_settings(spec, {"m.py": code.encode(), "notes.txt": b"ctx.spec.lr ctx.spec.precision"})
    assert (expected in text) if expected else text == ""
    assert text.count("train.") == expected.count("train.")
    assert unused_settings(spec, {}) == ""


def test_each_is_a_field() -> None:
    """None is misspelt, and none of the optimizer's and the schedule's is left out."""
    fields = set(TrainSection.model_fields)
    assert set(APPLIED) <= fields
    assert {name for name in fields if re.match("optimizer|schedule|warmup|lr|weight_decay|momentum", name)} <= set(
        APPLIED
    )
