"""Tasks of a retraining that are repeated: a run is trained once, and a replay is kept once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from looped import live
from retrained import NOW, moved, retraining

from raymlops.config.load import load_data
from raymlops.config.retrain import RetrainSection
from raymlops.errors import RecipeError, RefusedError
from raymlops.lifecycle.batch.replay_piece import TrainedUntil
from raymlops.lifecycle.loop.log_tables import LogTables
from raymlops.lifecycle.loop.stage_jobs import RETRAINING
from raymlops.lifecycle.loop.status import loop_status
from raymlops.lifecycle.retraining.tasks import keep, keep_data, retraining_job, trained_until
from raymlops.records import GateDecision
from raymlops.state.loop import advance, begin, retraining_of

WINDOW = {"start": "2026-01-01", "stop": "2026-02-01"}


@pytest.fixture
def spec(storage_path):
    """Return what the job of a retraining is sent; an MLflow database is ready."""
    data = {
        "project": {"name": "seasons", "tags": {RETRAINING: "r1"}},
        "recipe": {"import": "seasons:Seasons"},
        "train": {"epochs": 1, "lr": 0.01, "num_workers": 0, "threads_per_worker": 1, "window": WINDOW},
        "storage": {"path": str(storage_path)},
    }
    return load_data(data).spec


def test_a_run_is_trained_once(spec, mlflow):
    """The second job of a retraining finds the run of the first, which is of the window and has its tag."""
    first = retraining_job(spec, "r1", "train")
    again = retraining_job(spec, "r1", "train")

    assert again == first
    run = mlflow.run(first.result)
    assert run.data.tags[RETRAINING] == "r1"
    assert run.data.params["train.window.stop"] == "2026-02-01T00:00:00+00:00"


def test_a_recipe_without_a_window_is_not_trained_on_its_old_rows(spec):
    """It says what to define."""
    timeless = spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"import_": "seasons:Timeless"})})
    with pytest.raises(RecipeError, match=r"Timeless.datasets\(\) takes no window"):
        retraining_job(timeless, "r1", "train")


def test_a_gate_needs_a_run(spec, state):
    """Nothing is registered of one that is not trained."""
    begin(state, retraining())
    there = spec.model_copy(update={"storage": spec.storage.model_copy(update={"state": state.url})})
    with pytest.raises(RefusedError, match="has no run yet: it is decided"):
        retraining_job(there, retraining().id, "gate")


def test_a_replay_is_kept_whatever_is_written_meanwhile(state):
    """The note of another process stays, and so does the decision; a retraining that went on takes none."""
    one = retraining(settings=RetrainSection().model_dump(mode="json"), stage="replaying")
    begin(state, one)
    keep(state, one.id, GateDecision(True, ()))
    kept = retraining_of(state, one.id)
    assert kept.found["replaying"]["passed"] is True
    advance(state, *moved(kept, "rolling_out"), why="on")
    with pytest.raises(RefusedError, match="what was found counts no more"):
        keep(state, one.id, GateDecision(True, ()))
    assert retraining_of(state, one.id).made_at == NOW


def test_a_replay_knows_what_was_trained_on():
    """As the gate found it; without that, nothing of the window before the decision counts."""
    one = retraining(settings=RetrainSection().model_dump(mode="json"), stage="replaying")
    assert trained_until(one) == TrainedUntil(NOW.timestamp(), NOW.timestamp())
    gate = {"passed": True, "rows_until": "2025-12-20T00:00:01+00:00", "labels_until": "2025-12-27T00:00:01+00:00"}
    found = trained_until(replace(one, found={"gating": gate}))
    assert found.labels - found.rows == 7 * 24 * 3600
    assert NOW.timestamp() - found.labels == 5 * 24 * 3600 + 12 * 3600 - 1


def test_what_is_trained_on_of_the_log_is_said_by_status_and_audit(state):
    """Once, however often the job begins; a retraining that was rejected meanwhile is not trained."""
    live(state, autonomy="act")
    one = retraining(settings=RetrainSection().model_dump(mode="json"), stage="checking")
    begin(state, one)
    numbers = {"train": 1_048, "validation": 152, "test": 312, "rows": 1_600, "coverage": 0.9, "known_late": 48}
    tables = LogTables("data/log-1", numbers, ("48 rows are left out", "all labels are of one caller: ada"))
    for _ in range(2):
        keep_data(state, one.id, tables)
    said = (
        "trained on 1,048 labelled rows of the log, 152 validate and 312 test: of 1,600 rows in the window 90.0% get a "
        "label; 48 rows are left out; all labels are of one caller: ada"
    )
    kept = retraining_of(state, one.id)

    assert loop_status(state, "flights", now=NOW)["lines"][1] == said
    assert [event.why for event in state.events("flights")].count(said) == 1
    advance(state, *moved(kept, "rejected"), why="no")
    with pytest.raises(RefusedError, match="what was found counts no more"):
        keep_data(state, one.id, replace(tables, uri="data/log-2"))
    assert loop_status(state, "flights", now=NOW)["lines"][-1] == said
