"""The configuration and the lease of the controller's actor; that it resumes after a kill is tested on a cluster."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from answering_cluster import answering_cluster
from stored import put

from raymlops.config.schema import ProjectSpec
from raymlops.config.serve import RolloutSection
from raymlops.lifecycle.live.rollouts import begin
from raymlops.lifecycle.rollout.actor import (
    LEASE,
    ControllerActor,
    controller_config,
    ensure_controller,
    ensure_running,
    purpose,
    start_controller,
)
from raymlops.lifecycle.sources import spec_of
from raymlops.records import BundleRef
from raymlops.serving.telemetry.rollout_counts import controller_of
from raymlops.state.database import state_url
from raymlops.state.identity import settle_on
from raymlops.state.lease import lease
from raymlops.state.rollouts import start_rollout
from raymlops.state.store import Deployment, State
from raymlops.version import __version__, code_version


def spec(**sections):
    data = {"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, **sections}
    return ProjectSpec.model_validate(data)


def id_of(where):
    with State.open(state_url(where)) as state:
        return state.owner().id


def phase_of(actor):
    """Return a controller's phase after its first attempt."""
    while actor.status()["phase"] == "starting":
        actor.report("m", "a", 1, {})
    return actor.status()["phase"]


def test_references_travel_and_credentials_do_not(monkeypatch, tmp_path):
    """Places by their full names, since the actor has another folder; the values of references nowhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATE_URL", "postgresql://me:hunter2@db/x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@mlflow:5000")
    (tmp_path / "phase").write_text("hunter2")
    data = controller_config(
        spec(
            storage={"path": "here", "state": {"env": "STATE_URL"}},
            tracking={"uri": "http://mlflow:5000", "username": {"file": "~/user"}, "password": {"file": "phase"}},
        ),
        dashboard_url="http://127.0.0.1:8265",
    )
    assert "hunter2" not in str(data)
    assert data["storage"]["path"] == str(tmp_path / "here")
    assert data["storage"]["state"] == {"env": "STATE_URL"}
    assert data["tracking"]["password"] == {"file": str(tmp_path / "phase")}
    assert data["tracking"]["username"] == {"file": "~/user"}  # the cluster's user may have another home
    assert data["cluster"]["dashboard"] == "http://127.0.0.1:8265"
    assert spec_of(data).storage.path == str(tmp_path / "here")


def test_where_mlflow_is_comes_along_unless_it_holds_a_password(monkeypatch):
    """The variable is this process's; the actor may not have it."""
    for uri, expected in (("http://mlflow:5000", "http://mlflow:5000"), ("http://me:word@mlflow:5000", None)):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert controller_config(spec(), dashboard_url="http://d:1")["tracking"]["uri"] == expected


def test_a_controller_that_holds_its_lease_is_taken_for_granted(tmp_path):
    """Nothing is connected to; one that is needed must answer, and there is no cluster here."""
    where = spec(storage={"path": str(tmp_path)}, cluster={"address": "local"})
    with State.open(state_url(where)) as state:
        with lease(state_url(where), LEASE, purpose=purpose()):
            assert ensure_running(where, state, dashboard_url="http://d:1", must_answer=False) is None
        why = ensure_running(where, state, dashboard_url="http://d:1", must_answer=True)
    assert why is not None
    assert "weights do not move" in why


@pytest.mark.parametrize(
    "other",
    [
        "moves what is live",  # as a release before 0.2 says
        f"moves what is live, raymlops {__version__}",  # as this release said before
        f"controller {__version__}+01234567",
    ],
)
def test_a_controller_of_other_code_is_not_taken_for_granted(tmp_path, other):
    """Whatever its release: it may not read what this code stores. No cluster is here on which it could be replaced."""
    where = spec(storage={"path": str(tmp_path)}, cluster={"address": "local"})
    with State.open(state_url(where)) as state, lease(state_url(where), LEASE, purpose=other):
        why = ensure_running(where, state, dashboard_url="http://d:1", must_answer=False)
    assert "the controller could not be started" in (why or "")


@pytest.fixture
def cluster():
    """Yield the dashboard of the cluster ``here``."""
    with answering_cluster() as running:
        running.details = {"data": {"clusterId": "here"}}
        yield running


def test_one_that_runs_on_a_cluster_that_cannot_be_joined_is_found_by_its_lease(tmp_path, cluster):
    """Its state is a file of this machine, and only the dashboard is known: nothing has to be started."""
    where = spec(storage={"path": str(tmp_path)}, cluster={"address": "local", "dashboard": cluster.url})
    with lease(state_url(where), LEASE, purpose=purpose()):
        assert purpose() in start_controller(where).holder


def test_two_controllers_of_one_database(tmp_path, cluster):
    """The second waits and says for whom; once the first has stopped the lease is free."""
    where = spec(storage={"path": str(tmp_path)})
    data = controller_config(where, dashboard_url=cluster.url)
    with lease(state_url(where), "controller", purpose="a test"):
        second = ControllerActor(data, id_of(where))
        assert "in use by" in phase_of(second)
        assert second.status()["release"] == code_version() != __version__
        second.stop()
    assert second.status()["state"] == id_of(where)
    with lease(state_url(where), "controller", purpose="a test"):
        pass


def test_a_controller_moves_nothing_on_another_cluster(tmp_path, cluster):
    """What its database desires is live elsewhere: it does not even ask for the lease, which the one there has."""
    where = spec(storage={"path": str(tmp_path)})
    with State.open(state_url(where)) as state, state.writing() as connection:
        settle_on(connection, "there", why="a test")
    with lease(state_url(where), "controller", purpose="a test"):
        one = ControllerActor(controller_config(where, dashboard_url=cluster.url), id_of(where))
        assert "is live on another cluster: there" in phase_of(one)
        one.stop()


def test_a_controller_works_on_its_own_state_alone(tmp_path):
    """Its database was lost, and an empty one made at the same place: that one has a controller of its own."""
    where = spec(storage={"path": str(tmp_path)})
    lost = "0" * 36
    one = ControllerActor(controller_config(where, dashboard_url="http://127.0.0.1:9"), lost)
    assert "now belongs to state" in phase_of(one)
    with lease(state_url(where), "controller", purpose="a test"):
        pass
    one.stop()
    assert len({controller_of(lost), controller_of(id_of(where)), controller_of("")}) == 3


def test_a_controller_is_seen_to_before_anything_is_live(tmp_path):
    """Before a first deploy too, which it completes if its verb is killed; what comes of it is said."""
    where = spec(storage={"path": str(tmp_path)}, cluster={"address": "local"})
    with State.open(state_url(where)) as state:
        (why,) = ensure_controller(where, state, dashboard_url="http://d:1")
        assert "the controller could not be started" in why
        with lease(state_url(where), LEASE, purpose=purpose()):
            assert ensure_controller(where, state, dashboard_url="http://d:1") == ()


def test_a_rollout_needs_a_controller_that_answers(tmp_path):
    """One that only holds the lease may hang, or be on a cluster that is gone."""
    where = spec(storage={"path": str(tmp_path)}, cluster={"address": "local"})
    with State.open(state_url(where)) as state, lease(state_url(where), LEASE, purpose=purpose()):
        two = [Deployment("m", version, BundleRef("/bundles", "d" * 64), "run", "warm", {}) for version in (1, 2)]
        put(state, "m", [replace(two[0], role="champion"), replace(two[1], weight=0.1)])
        assert ensure_controller(where, state, dashboard_url="http://d:1") == ()
        rollout = begin(
            rollout_id="r", name="m", version=2, champion=1, settings=RolloutSection(), now=datetime.now(UTC)
        )
        with state.writing() as connection:
            start_rollout(connection, rollout)
        (why,) = ensure_controller(where, state, dashboard_url="http://d:1")
        assert "the controller could not be started" in why
