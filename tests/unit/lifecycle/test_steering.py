"""What the controller's actor is told. That it runs, and goes on after a kill, is tested on a cluster."""

from __future__ import annotations

from raymlops.config.schema import ProjectSpec
from raymlops.lifecycle.source import spec_of
from raymlops.lifecycle.steering import Steering, ensure_controller, mark_of, told
from raymlops.state.lease import lease
from raymlops.state.store import state_url


def spec(**sections):
    data = {"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, **sections}
    return ProjectSpec.model_validate(data)


def test_references_travel_and_credentials_do_not(monkeypatch, tmp_path):
    """Places by their full names, since the actor has another folder; the values of references nowhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATE_URL", "postgresql://me:hunter2@db/x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@mlflow:5000")
    (tmp_path / "word").write_text("hunter2")
    data = told(
        spec(
            storage={"path": "here", "state": {"env": "STATE_URL"}},
            tracking={"uri": "http://mlflow:5000", "password": {"file": "word"}},
        ),
        dashboard_url="http://127.0.0.1:8265",
    )
    assert "hunter2" not in str(data)
    assert data["storage"]["path"] == str(tmp_path / "here")
    assert data["storage"]["state"] == {"env": "STATE_URL"}
    assert data["tracking"]["password"] == {"file": str(tmp_path / "word")}
    assert data["cluster"]["dashboard"] == "http://127.0.0.1:8265"
    assert spec_of(data).storage.path == str(tmp_path / "here")


def test_where_mlflow_is_comes_along_unless_it_holds_a_password(monkeypatch):
    """The variable is this process's; the actor may not have it."""
    for uri, expected in (("http://mlflow:5000", "http://mlflow:5000"), ("http://me:word@mlflow:5000", None)):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert told(spec(), dashboard_url="http://d:1")["tracking"]["uri"] == expected


def test_a_controller_that_holds_its_lease_is_taken_for_granted(tmp_path):
    """Nothing is connected to; one that is needed must answer, and there is no cluster here."""
    where = spec(storage={"path": str(tmp_path)}, cluster={"address": "local"})
    with lease(state_url(where), "controller", purpose="a test"):
        assert ensure_controller(where, dashboard_url="http://d:1", needed=False) is None
    why = ensure_controller(where, dashboard_url="http://d:1", needed=True)
    assert why is not None
    assert "weights stand still" in why


def test_two_controllers_of_one_database(tmp_path):
    """The second waits and says for whom; once the first has stopped the lease is free."""
    where = spec(storage={"path": str(tmp_path)})
    data = told(where, dashboard_url="http://127.0.0.1:9")
    with lease(state_url(where), "controller", purpose="a test"):
        second = Steering(data)
        while second.status()["word"] == "starting":
            second.report("m", "a", 1, {})
        assert "in use by" in second.status()["word"]
        second.stop()
    assert second.status()["mark"] == mark_of(where)
    with lease(state_url(where), "controller", purpose="a test"):
        pass
