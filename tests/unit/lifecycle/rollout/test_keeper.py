from __future__ import annotations

import threading

import pytest

from raymlops.config.load import load_data
from raymlops.errors import UsageError
from raymlops.lifecycle.rollout import keeper
from raymlops.lifecycle.rollout.keeper import keep_controller

PROJECT = {"project": {"name": "m"}, "recipe": {"import": "any:Recipe"}}


def test_it_needs_a_ray_service(monkeypatch):
    """Which the environment names."""
    monkeypatch.delenv("RAYMLOPS_RAYSERVICE", raising=False)
    with pytest.raises(UsageError, match="no RayService is named"):
        keep_controller(PROJECT)


def test_it_goes_on_where_kubernetes_does_not_answer(monkeypatch, caplog, tmp_path, url):
    """What is wrong is said once, and the heartbeat shows that it is alive."""
    monkeypatch.setenv("RAYMLOPS_RAYSERVICE", "flights")
    monkeypatch.setenv("RAYMLOPS_KUBERNETES", "http://127.0.0.1:1")
    monkeypatch.setenv("RAYMLOPS_NAMESPACE", "models")
    monkeypatch.setenv("STATE", url)
    waited = []

    class Stopped(threading.Event):
        def wait(self, timeout=None):
            waited.append(timeout)
            if len(waited) == 3:
                self.set()
            return self.is_set()

    spec = load_data({**PROJECT, "storage": {"state": {"env": "STATE"}}}).spec
    keep_controller(spec, heartbeat=tmp_path / "beat", stopped=Stopped())
    assert waited == [keeper.PERIOD_S] * 3
    assert (tmp_path / "beat").exists()
    assert [record.message for record in caplog.records if record.name == keeper.__name__] == [
        "retrying: Kubernetes' API server at http://127.0.0.1:1 does not answer: ConnectError"
    ]
