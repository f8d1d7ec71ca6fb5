"""The quality that ``configs/digits.yaml`` promises, on the held-out images and with the real loop; no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_training import run_local

from raymlops.config.load import load
from raymlops.data.prepare import prepare
from raymlops.project import bind
from raymlops.training.loop.evaluation import totals

pytestmark = pytest.mark.integration

CONFIG = Path(__file__).parents[2] / "configs" / "digits.yaml"


def test_network_reads_at_least_97_of_100_held_out_digits():
    """360 images that neither training nor the choice of the epoch has seen."""
    project = bind(load(CONFIG))
    prepared = prepare(project)
    model = prepared.recipe.model()
    model.load_state_dict(run_local(project, prepared=prepared).model_state)
    sums = totals(prepared.recipe, model.eval(), prepared.splits["test"], batch_size=512)
    assert sums["count"] == 360
    assert prepared.recipe.finalize(sums)["accuracy"] >= 0.97
