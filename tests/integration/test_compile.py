"""torch.compile with everything that goes around it: a real compiler, so seconds for each case."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import rank_jobs as jobs
from ranks import ranks


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"strategy": "ddp"}, id="ddp", marks=pytest.mark.soak),
        pytest.param({"strategy": "ddp", "activation_checkpointing": True}, id="checkpointing", marks=pytest.mark.soak),
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
