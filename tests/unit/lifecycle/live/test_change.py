"""Changes of what is live, against a real state database and Serve's API in memory."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fake_serve import FakeServe

from raymlops.config.serve import ServeSection
from raymlops.errors import ConfigError, DeployError, InsufficientResourcesError, NotFoundError, RefusedError
from raymlops.lifecycle.keys import bring
from raymlops.config.load import load_data
from raymlops.lifecycle.deploy import roll_back
from raymlops.lifecycle.live.capacity import leaving_first
from raymlops.lifecycle.live.change import change, record_of
from raymlops.lifecycle.live.reconcile import is_up
from raymlops.lifecycle.live.transitions import ROUTE, Request, bring, removed
from raymlops.records import BundleRef
from raymlops.state.keys import create_key, revoke_key
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


def deploy(state, serve, version, *, name="flights", uri="/bundles", **settings):
    new = Deployment(name, version, BundleRef(uri, "d" * 64), f"run{version}", "champion", settings)
    leaving = leaving_first(serve, state.deployments(name), new)
    request = Request("deploy", "a test", "me", datetime.now(UTC), 2.0)
    goal = {**ROUTE, "configured": True}

    def decide(model, plan):
        up = is_up(plan, new, goal=goal)
        return bring(model, new, goal=goal, request=request, up=up, leaving=leaving)

    return change(state, serve, name, decide=decide, serve=SERVE, action="deploy", subject=version)


def rollback(state, serve, *, name="flights"):
    spec = load_data({"project": {"name": name}, "recipe": {"import": "any:Recipe"}, "serve": {"ready_timeout_s": 2}}).spec
    return roll_back(spec, state, serve)


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
    """State and Serve hold version 1 alone, and the audit both the beginning and its undoing."""
    deploy(state, serve, 1)
    with pytest.raises(DeployError, match="no such layer"):
        deploy(state, serve, 2, uri="/broken")
    assert roles(state) == {"flights--v1": "champion"}
    assert set(serve.live) == {"flights--v1", "raymlops"}
    assert [event.action for event in state.events()] == [
        *("deploy.start.undone", "deploy.start"),
        *("deploy", "deploy.start"),
    ]


class Meanwhile(FakeServe):
    """Serve in which ``act`` is called once while version 2 is looked at on its way up."""

    def __init__(self, act, **fields):
        super().__init__(dashboard_url=ELSEWHERE, **fields)
        self.act = act

    def get(self):
        if "flights--v2" in self.live and self.act is not None:
            act, self.act = self.act, None
            act()
        return super().get()


def test_a_version_on_its_way_up_keeps_nobody_waiting(url):
    """While it comes up the lock is free: a key is revoked, and Serve knows before the version is there."""
    key = {}

    def revoke():
        with State.open(url) as other:
            revoke_key(other, key["id"], now=datetime.now(UTC))
            bring(other, serve, key["record"], serve=SERVE, purpose="a test", lock_wait_s=0)
        (options,) = serve.live["flights--v1"]["deployments"]
        key["left"] = options["user_config"]["access"]["keys"]

    serve = Meanwhile(revoke)
    with State.open(url) as state:
        deploy(state, serve, 1)
        record, _ = create_key(state, name="shop", models=["flights"], now=datetime.now(UTC))
        key |= {"id": record.id, "record": record}
        done = deploy(state, serve, 2)
    assert key["left"] == []
    assert done.applied.routes["/models/flights"] == "flights--v2"


@pytest.mark.parametrize(
    ("act", "message", "left"),
    [
        ("remove", "version 2 of flights was taken down while it came up", {}),
        ("roll back", "version 0 of flights was made live while version 2 came up", {0: "champion", 1: "warm"}),
        ("deploy 3", "version 3 of flights was made live while", {0: "warm", 1: "warm", 3: "champion"}),
        ("set up", "version 2 of flights was given other settings", {0: "warm", 1: "champion", 2: "warm"}),
    ],
)
def test_what_others_do_while_a_version_comes_up_is_said(url, act, message, left):
    """Who waits for version 2 changes nothing of theirs, takes it away again, and says what happened."""

    def others():
        with State.open(url) as other:
            if act == "remove":
                change(other, serve, "flights", decide=lambda _: LineUp([], None), serve=SERVE, action="remove", why="")
            elif act == "roll back":
                rollback(other, serve)
            elif act == "deploy 3":
                deploy(other, serve, 3)
            else:
                items = [replace(item, serve={"max_rows": 1 + item.version}) for item in other.deployments()]
                other.put_deployments({"flights": items}, action="deploy.beside", why="")

    serve = Meanwhile(others, cpus=8.0)
    with State.open(url) as state:
        for version in (0, 1):
            deploy(state, serve, version)
        with pytest.raises(RefusedError, match=message):
            deploy(state, serve, 2)
        assert {item.version: item.role for item in state.deployments()} == left
    assert {name for name in serve.live if name != "raymlops"} == {f"flights--v{version}" for version in left}


def test_a_kill_while_a_version_comes_up_is_made_good_by_the_same_verb(state, serve):
    """It stands warm, as its event says; deployed again it has the route, and the one before is known."""

    deploy(state, serve, 1)
    item = Deployment("flights", 2, BundleRef("/bundles", "d" * 64), "run2", "warm", {})
    state.put_deployments({"flights": [*state.deployments(), item]}, action="deploy.start", why="killed here")
    done = deploy(state, serve, 2)
    assert roles(state) == {"flights--v1": "warm", "flights--v2": "champion"}
    assert [event.action for event in state.events()] == ["deploy", "deploy.start", "deploy", "deploy.start"]
    assert record_of(done).previous_version == 1
    assert record_of(rollback(state, serve)).version == 1


def test_a_flip_to_what_is_up_is_one_event_and_one_config(state, serve):
    """A rollback to a warm version waits for nothing."""
    for version in (1, 2):
        deploy(state, serve, version)
    sent = len(serve.sent)
    rollback(state, serve)
    assert len(serve.sent) == sent + 1
    assert state.events()[0].action == "rollback"


def test_new_settings_of_the_champion_are_taken_back_where_it_does_not_come_up_with_them(state, serve):
    """Its replicas do not start with them: one event and its undoing, and Serve has the old ones."""
    deploy(state, serve, 1, max_rows=5)
    serve.unhealthy = {"flights--v1"}
    with pytest.raises(DeployError, match="UNHEALTHY"):
        deploy(state, serve, 1, cpus_per_replica=0.5)
    assert [item.serve for item in state.deployments()] == [{"max_rows": 5}]
    assert [event.action for event in state.events()][:2] == ["deploy.undone", "deploy"]
    (options,) = serve.live["flights--v1"]["deployments"]
    assert options["user_config"]["limits"]["max_rows"] == 5


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
    assert warning.startswith("version 1 is live, but the alias champion was not set")
    assert roles(state) == {"flights--v1": "champion"}
    event = state.events()[0]
    assert (event.action, event.subject, event.why) == ("deploy.alias", "flights/1", warning)


def test_an_mlflow_that_hangs_holds_nobody(state, serve):
    """The version is told of as live, then the alias is given up on; what is owed stays for the controller."""
    over, told = threading.Event(), []
    new = Deployment("flights", 1, BundleRef("/bundles", "d" * 64), "run1", "champion")
    done = change(
        state,
        serve,
        "flights",
        decide=lambda before: LineUp(with_champion(before, new), 1),
        serve=SERVE,
        action="deploy",
        why="a test",
        on_live=told.append,
        follow=lambda _version: over.wait(60),
        alias_wait_s=0.01,
    )
    over.set()
    assert told == [1]
    assert "MLflow did not answer within 0.01 s" in done.warnings[0]
    assert pending_aliases(state) == [("flights", 1)]


def test_a_line_up_says_why(state, serve):
    """What is known only under the lock: the record has that, both as a version begins and as it is live."""
    new = Deployment("flights", 1, BundleRef("/bundles", "d" * 64), "run1", "champion")

    def decide(before):
        return LineUp(with_champion(before, new), 1, why="from nothing to version 1")

    change(state, serve, "flights", decide=decide, serve=SERVE, action="deploy", why="asked for")
    live, begun = state.events()
    assert (live.why, begun.why.partition(":")[0]) == ("from nothing to version 1",) * 2


def test_a_rollback_opens_no_endpoint(state, serve):
    """Version 1 was deployed without keys, 2 with: 1 asks for them since then, so that its flip is not waited for."""
    deploy(state, serve, 1)
    deploy(state, serve, 2, auth="keys")
    sent = len(serve.sent)
    rollback(state, serve)
    (options,) = serve.live["flights--v1"]["deployments"]
    assert options["user_config"]["access"]["required"]
    assert len(serve.sent) == sent + 1


def test_a_version_without_room_is_refused_before_anything_changes(state, serve):
    """Two replicas of 1 CPU beside 0.5 CPU that are served do not fit 2 CPUs, and no training that ends would help."""
    deploy(state, serve, 1, cpus_per_replica=0.5)
    sent = len(serve.sent)
    with pytest.raises(InsufficientResourcesError, match=r"version 2 requests 2 x 1 CPU.* room for 1") as caught:
        deploy(state, serve, 2, min_replicas=2, cpus_per_replica=1.0)
    assert "held by Serve application flights--v1: 0.5 CPU" in str(caught.value)
    assert (roles(state), len(serve.sent), len(state.events())) == ({"flights--v1": "champion"}, sent, 2)


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
