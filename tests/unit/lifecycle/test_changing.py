"""Changes of what is live, against a real state database and Serve's API in memory."""

from __future__ import annotations

import threading

import pytest
from fake_serve import FakeServe

from raymlops.config.serve import ServeSection
from raymlops.errors import ConfigError, DeployError, InsufficientResourcesError, NotFoundError
from raymlops.lifecycle.changing import LineUp, change, record_of
from raymlops.lifecycle.lineup import previous_champion, spare_of, with_champion
from raymlops.records import BundleRef
from raymlops.state.store import Deployment, State

SERVE = ServeSection(ready_timeout_s=2)
ELSEWHERE = "http://dashboard:8265"  # where no proxy is asked whether it answers


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/state.db"


@pytest.fixture
def state(url):
    with State.open(url) as opened:
        yield opened


@pytest.fixture
def serve():
    return FakeServe(dashboard_url=ELSEWHERE)


def deploy(state, serve, version, *, name="flights", uri="/bundles", follow=None, **settings):
    new = Deployment(name, version, BundleRef(uri, "d" * 64), f"run{version}", "champion", settings)
    return change(
        state,
        serve,
        name,
        decide=lambda before: LineUp(with_champion(before, new), version, spare=spare_of(before, new)),
        serve=SERVE,
        action="deploy",
        why="a test",
        follow=follow,
    )


def rollback(state, serve, *, name="flights", follow=None):
    def decide(before):
        target = previous_champion(before, state.changes(name))
        return LineUp(with_champion(before, target), target.version)

    return change(state, serve, name, decide=decide, serve=SERVE, action="rollback", why="a test", follow=follow)


def roles(state):
    return {f"{item.name}--v{item.version}": item.role for item in state.deployments()}


def test_two_deploys_at_once_leave_both_models_live(url, serve):
    """The second starts while the first is sending its config, and waits: neither deletes the other's endpoint."""

    def deploy_digits():
        with State.open(url) as other:
            deploy(other, serve, 1, name="digits")

    second = threading.Thread(target=deploy_digits)

    class Meeting(FakeServe):
        def put(self, config):
            if not second.ident:
                second.start()
                second.join(0.3)  # without a lock it would be through by now, and this put would undo its work
            super().put(config)

    serve = Meeting(dashboard_url=ELSEWHERE)
    with State.open(url) as state:
        deploy(state, serve, 1)
        second.join()
        assert roles(state) == {"digits--v1": "champion", "flights--v1": "champion"}
    assert set(serve.live) == {"digits--v1", "flights--v1", "raymlops"}


def test_a_version_that_does_not_come_up_leaves_all_as_it_was(state, serve):
    """State and Serve hold version 1 alone, and the audit both the change and its undoing."""
    deploy(state, serve, 1)
    with pytest.raises(DeployError, match="no such layer"):
        deploy(state, serve, 2, uri="/broken")
    assert roles(state) == {"flights--v1": "champion"}
    assert set(serve.live) == {"flights--v1", "raymlops"}
    assert [event.action for event in state.events()] == ["deploy.undone", "deploy", "deploy"]


def test_a_neighbours_broken_model_fails_no_change(state, serve):
    """Neither a new version, nor the same again, nor a rollback."""
    deploy(state, serve, 1, name="digits")
    deploy(state, serve, 1)
    serve.unhealthy = {"digits--v1"}
    assert deploy(state, serve, 2).applied.routes["/models/flights"] == "flights--v2"
    assert not deploy(state, serve, 2).applied.changed
    assert rollback(state, serve).applied.routes["/models/flights"] == "flights--v1"


def test_a_rollback_does_not_wait_for_the_version_it_leaves(state, serve):
    """Version 2 broke after it went live, and Serve was started anew since: version 1 takes over all the same."""
    deploy(state, serve, 1)
    deploy(state, serve, 2)
    serve.live = {}
    serve.unhealthy = {"flights--v2"}
    assert record_of(rollback(state, serve)).version == 1
    assert roles(state) == {"flights--v1": "champion", "flights--v2": "warm"}


def test_a_rollback_finds_what_was_live_behind_any_number_of_gates(state, serve):
    """Also when the model was taken down and deployed again in between."""
    deploy(state, serve, 1)
    deploy(state, serve, 2)
    change(state, serve, "flights", decide=lambda _: LineUp([], None), serve=SERVE, action="remove", why="")
    for version in range(150):
        state.record(action="gate.refuse", subject=f"flights/{version}")
    with pytest.raises(NotFoundError, match="not served"):
        rollback(state, serve)
    deploy(state, serve, 2)
    assert record_of(rollback(state, serve)).version == 1


def test_an_alias_that_does_not_follow_is_a_warning_on_the_record(state, serve):
    """Whatever of ours it raises: the version is live, which is what the caller must hear."""

    def follow(version):
        raise ConfigError([], hint="tracking.password cannot be read")

    done = deploy(state, serve, 1, follow=follow)
    (warning,) = record_of(done).warnings
    assert warning.startswith("version 1 is live, but the alias champion did not follow")
    assert roles(state) == {"flights--v1": "champion"}
    event = state.events()[0]
    assert (event.action, event.subject, event.why) == ("deploy.alias", "flights/1", warning)


def test_a_version_without_room_is_refused_before_anything_changes(state, serve):
    """Two replicas of 1 CPU beside 0.5 CPU that are served do not fit 2 CPUs, and no training that ends would help."""
    deploy(state, serve, 1, cpus_per_replica=0.5)
    sent = len(serve.sent)
    with pytest.raises(InsufficientResourcesError, match=r"version 2 asks for 2 x 1 CPU.* room for 1") as caught:
        deploy(state, serve, 2, min_replicas=2, cpus_per_replica=1.0)
    assert "held by Serve application flights--v1: 0.5 CPU" in str(caught.value)
    assert (roles(state), len(serve.sent), len(state.events())) == ({"flights--v1": "champion"}, sent, 1)


def test_the_oldest_version_makes_room_for_the_newest(state, serve):
    """Versions of 0.8 CPU on 2 CPUs: the third comes up only once the first, which nobody asks, is gone."""
    for version in (1, 2, 3):
        deploy(state, serve, version, cpus_per_replica=0.8, max_replicas=1)
    assert roles(state) == {"flights--v2": "warm", "flights--v3": "champion"}
    alive = [{name for name in serve.routes(index) if name != "raymlops"} for index in range(len(serve.sent))]
    assert {"flights--v2"} in alive
    assert all(len(names) <= 2 for names in alive)


def test_where_nodes_may_be_added_nothing_is_refused(state, serve):
    """Serve asks the autoscaler for what is missing."""
    serve.grows = True
    deploy(state, serve, 1, min_replicas=4, max_replicas=4, cpus_per_replica=1.0)
    assert roles(state) == {"flights--v1": "champion"}
