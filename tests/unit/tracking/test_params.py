"""A configuration as MLflow parameters."""

from __future__ import annotations

from raymlops.tracking.params import flatten


def test_nested_data_becomes_dotted_names() -> None:
    """Text stays as it is; numbers, true, null and lists are JSON; empty sections are left out."""
    data = {
        "project": {"name": "tiny", "tags": {}},
        "train": {"lr": 1e-5, "epochs": 3, "clip_norm": None},
        "sweep": {"space": {"train.lr": {"float": [1e-5, 0.1], "log": True}}},
    }
    assert flatten(data) == {
        "project.name": "tiny",
        "train.lr": "1e-05",
        "train.epochs": "3",
        "train.clip_norm": "null",
        "sweep.space.train.lr.float": "[1e-05, 0.1]",
        "sweep.space.train.lr.log": "true",
    }


def test_long_values_are_cut_at_the_limit() -> None:
    """MLflow refuses more than 6,000 characters."""
    value = flatten({"text": "x" * 7000})["text"]
    assert len(value) == 6000
    assert value.endswith("...")
