"""Lineage as tags."""

from __future__ import annotations

from raymlops.registry.lineage import lineage_tags


def test_lineage_is_taken_from_the_run_and_leaves_out_what_is_not_known():
    """Other tags of the run are its own affair; a child run belongs to its parent's sweep."""
    tags = lineage_tags(
        run_id="r1",
        run_tags={
            "mlflow.parentRunId": "s1",
            "raymlops.git_commit": "abc",
            "raymlops.data_fingerprint": "",
            "raymlops.kind": "trial",
            "mlflow.user": "me",
        },
    )

    assert tags == {"raymlops.run_id": "r1", "raymlops.sweep_id": "s1", "raymlops.git_commit": "abc"}


def test_a_sweep_that_the_run_names_itself_comes_first():
    """A winner trained again is no child of the sweep that found its configuration."""
    assert lineage_tags(run_id="r1", run_tags={"raymlops.sweep_id": "s2", "mlflow.parentRunId": "s1"}) == {
        "raymlops.run_id": "r1",
        "raymlops.sweep_id": "s2",
    }
