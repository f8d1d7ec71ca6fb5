"""pipeline(): what is rejected before anything is trained."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from answering_cluster import answering_cluster

from raymlops.config.serve import RolloutSection
from raymlops.errors import RefusedError
from raymlops.lifecycle.live.rollouts import begin
from raymlops.lifecycle.pipeline import pipeline
from raymlops.lifecycle.sources import spec_of, state_of
from raymlops.state.rollouts import start_rollout


def test_a_running_rollout_is_in_the_way_before_anything_is_trained(tmp_path):
    """Its deploy at the end would be refused; the error says how to end the rollout."""
    source = {
        "project": {"name": "tiny"},
        "recipe": {"import": "tiny:Tiny"},
        "storage": {"path": str(tmp_path)},
        "cluster": {"address": "local"},
    }
    rollout = begin(
        rollout_id="r1", name="tiny", version=2, champion=1, settings=RolloutSection(), now=datetime.now(UTC)
    )
    with state_of(spec_of(source)) as state, state.writing() as connection:
        start_rollout(connection, rollout)
    with answering_cluster() as running:
        source["cluster"] = {"dashboard": running.url}
        with pytest.raises(RefusedError, match="version 2 of tiny is being rolled out: r1") as caught:
            pipeline(source)
    assert "raymlops rollback" in caught.value.hint
