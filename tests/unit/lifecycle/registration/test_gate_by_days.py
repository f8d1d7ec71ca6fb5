"""A gate on test rows with times, through the public functions: days decide, and not the rows of a day."""

from __future__ import annotations

import pytest

import raymlops as rm
from raymlops.errors import GateRefusedError


def test_a_version_that_is_better_on_some_days_and_worse_on_others_is_refused(storage_path):
    """On 11 days of 18 it answers better, on 7 as much worse, which a fair coin does in one of four.

    By 200 blocks, eleven of a day, it would seem to be better for certain.
    """
    data = {
        "project": {"name": "leaning"},
        "recipe": {"import": "seasons:Leaning"},
        "train": {"epochs": 1, "optimizer": "sgd", "lr": 1e-9, "threads_per_worker": 1},
        "gate": {"margin": 0.0, "compare_answers": False},
        "storage": {"path": str(storage_path)},
    }

    def version(lean):
        made = {**data, "recipe": {**data["recipe"], "config": {"lean": lean}}}
        return str(rm.register(made, rm.train(made, on_event=lambda _event: None).run_id).version)

    rm.gate(data, version(-0.2))
    rm.promote(data)
    challenger = version(0.2)
    with pytest.raises(GateRefusedError, match=r"version 1 on test/loss: got -0\.01"):
        rm.gate(data, challenger)
    _, decision = rm.gate(data, challenger, overrides=["gate.blocks=200"])
    assert decision.champion_version == 1
