"""A run on the labelled log: trained, registered, and passed by a gate that wants its test rows to be later."""

from __future__ import annotations

from tiny import Tiny
from tiny_log import live, log_days, retraining

import raymlops as rm
from raymlops.config.load import load_data
from raymlops.lifecycle.loop.training_data import tables_of
from raymlops.lifecycle.sources import state_of
from raymlops.training.runs.lookup import look_up


def test_a_run_on_the_log_is_registered_and_passes_its_gate(tmp_path, mlflow_database, monkeypatch):
    """Each reads the same rows by the run's configuration, which names them by their digest; the log is gone."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    storage = {"path": str(tmp_path), "state": f"sqlite:///{tmp_path}/state.db"}
    data = {
        "project": {"name": "tiny"},
        "recipe": {"import": "tiny:Tiny"},
        "train": {"epochs": 3, "batch_size": 64, "lr": 0.01, "threads_per_worker": 1},
        "storage": storage,
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    log_days(tmp_path, 40)
    with state_of(load_data(data).spec) as state:
        champion = live(state, tmp_path, window={"days": 40})
        found = tables_of(state, retraining(champion), champion, Tiny)
    (tmp_path / "predictions").rename(tmp_path / "elsewhere")
    retrained = {**data, "train": {**data["train"], "tables": found.uri}, "gate": {"later_rows": True}}
    record = rm.train(retrained, on_event=lambda _event: None)
    assert record.data.rows == {"train": 1_048, "validation": 152, "test": 312}
    assert record.metrics["validation/auc"] > 0.7
    version = rm.register(retrained, record.run_id)
    decision = rm.gate(retrained, str(version.version))[1]
    assert {check.name for check in decision.checks} >= {"tested on later rows", "tested on rows of its own"}
    assert decision.passed, decision.reason
    from raymlops.tracking.client import tracker

    recorded = look_up(tracker(load_data(data).spec), record.run_id).spec
    assert recorded.train.tables == found.uri
    assert recorded.sha() == record.config_sha != load_data(data).spec.sha()
