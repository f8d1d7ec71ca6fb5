"""torch.compile with everything that goes around it: a real compiler, so seconds for each case."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import rank_jobs as jobs
from local_training import run_local
from ranks import ranks

from raymlops.config.load import load_data
from raymlops.project import bind

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch 2.13 warns of itself
def test_a_compiled_run_has_the_history_of_a_plain_one(tmp_path: Path) -> None:
    """In this process; what wraps the model on ranks is a soak's."""
    section = {"epochs": 1, "batch_size": 64, "lr": 0.03, "threads_per_worker": 1}
    data = {
        "project": {"name": "tiny"},
        "recipe": {"import": "tiny:Tiny", "config": {"train_rows": 128, "validation_rows": 60, "test_rows": 10}},
        "storage": {"path": str(tmp_path)},
    }
    plain, compiled = (
        run_local(bind(load_data({**data, "train": section | more}))) for more in ({}, {"compile": True})
    )
    assert compiled.history == [pytest.approx(epoch, rel=1e-5) for epoch in plain.history]


@pytest.mark.soak
@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"strategy": "ddp"}, id="ddp"),
        pytest.param({"strategy": "ddp", "activation_checkpointing": True}, id="checkpointing"),
        pytest.param({"strategy": "fsdp", "precision": "bf16"}, id="fsdp-bf16"),
    ],
)
def test_compiled_models_train_alike(spec: dict[str, Any]) -> None:
    """On two ranks, compilation changes rounding alone: 1e-5 at float32, the 8 bits of a number at bf16."""
    plain, compiled = (
        ranks().run(2, partial(jobs.train, steps=3, spec=spec | {"compile": compile_}))[0]["losses"]
        for compile_ in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=5e-3 if "precision" in spec else 1e-5)
