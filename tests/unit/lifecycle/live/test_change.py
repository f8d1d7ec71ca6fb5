"""Changes of what is live, against a real state database and Serve's API in memory."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from canaries import check_bundle
from fake_serve import FakeServe
from states import converge
from stored import put

from raymlops.config.load import load_data
from raymlops.config.serve import ServeSection
from raymlops.errors import (
    ConfigError,
    DeployError,
    InsufficientResourcesError,
    NotFoundError,
    RefusedError,
    TrackingError,
    UnreachableError,
)
from raymlops.lifecycle.keys import bring as send_key
from raymlops.lifecycle.live.capacity import leaving_first
from raymlops.lifecycle.live.change import change, followed, record_of, within
from raymlops.lifecycle.live.reconcile import is_up
from raymlops.lifecycle.live.transitions import ROUTE, Request, bring
from raymlops.lifecycle.live.withdrawals import removed
from raymlops.lifecycle.rollback import roll_back
from raymlops.records import BundleRef
from raymlops.serving.control.details import routes
from raymlops.state.engine import open_engine
from raymlops.state.keys import create_key, revoke_key
from raymlops.state.store import Deployment, State

SERVE = ServeSection(ready_timeout_s=30)
ELSEWHERE = "http://dashboard:8265"  # where no proxy is asked whether it answers


@pytest.fixture
def serve():
    return FakeServe(dashboard_url=ELSEWHERE)


def deploy(state, serve, version, *, name="flights", uri="/bundles", timeout_s=30.0, **settings):
    new = Deployment(name, version, BundleRef(uri, "d" * 64), f"run{version}", "champion", settings)
    leaving = leaving_first(serve, state.desired(), new)
    request = Request("deploy", "a test", "me", datetime.now(UTC), timeout_s)
    goal = {**ROUTE, "configured": True}

    def decide(model, plan):
        up = plan is not None and is_up(plan, new, goal=goal)
        return bring(model, new, goal=goal, request=request, up=up, leaving=leaving)

    return change(state, serve, name, decide=decide, serve=SERVE, action="deploy", subject=version)


def rollback(state, serve, *, name="flights"):
    spec = load_data(
        {"project": {"name": name}, "recipe": {"import": "any:Recipe"}, "serve": {"ready_timeout_s": 30}}
    ).spec
    return roll_back(spec, state, serve, check=check_bundle)


def remove(state, serve, *, name="flights"):
    def decide(model, _plan):
        return removed(model, now=datetime.now(UTC), why="a test")

    return change(state, serve, name, decide=decide, serve=SERVE, action="remove")


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


def test_a_dashboard_that_is_forwarded_says_nothing_of_this_machine(state):
    """A cluster elsewhere: neither is its endpoint asked for here, nor its port looked for."""
    serve = FakeServe(dashboard_url="http://127.0.0.1:8265", forwarded=True)
    done = deploy(state, serve, 1)
    assert done.changed
    assert routes(serve.get()) == {"/models/flights": "flights--v1", "/": "raymlops"}


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


def while_it_comes_up(state, serve, act):
    """Deploy version 2 in a thread, call ``act`` while it comes up, and return what the deploy raised."""
    errors = []

    def deploy_two():
        with State.open(str(state._engine.url)) as other:
            try:
                deploy(other, serve, 2, timeout_s=30.0)
            except RefusedError as error:
                errors.append(error)

    serve.slow = {"flights--v2"}
    thread = threading.Thread(target=deploy_two)
    thread.start()
    deadline = time.monotonic() + 30
    while "flights--v2" not in serve.live:
        assert time.monotonic() < deadline
    act()
    serve.slow = set()
    thread.join(30)
    return errors


def test_a_version_on_its_way_up_keeps_nobody_waiting(state, serve):
    """While it comes up a key is revoked, and Serve knows before the version is there."""
    deploy(state, serve, 1)
    record, _ = create_key(state, name="shop", models=["flights"], now=datetime.now(UTC))

    def revoke():
        revoke_key(state, record.id, now=datetime.now(UTC))
        send_key(state, serve, record, serve=SERVE)
        (options,) = serve.live["flights--v1"]["deployments"]
        assert options["user_config"]["access"]["keys"] == []

    assert while_it_comes_up(state, serve, revoke) == []
    assert serve.live["flights--v2"]["route_prefix"] == "/models/flights"


@pytest.mark.parametrize(
    ("act", "said", "left"),
    [
        ("remove", "version 2 of flights no longer comes up: the model was removed", {}),
        ("roll back", "no longer comes up: rolled back", {0: "warm", 1: "champion"}),
        ("deploy 3", "no longer comes up: deploy of version 3", {0: "warm", 1: "warm", 3: "champion"}),
    ],
)
def test_what_others_do_while_a_version_comes_up_is_said(state, serve, act, said, left):
    """Who waits for version 2 changes nothing of theirs, and says what happened; a rollback takes version 2 back."""

    serve.cpus = 8.0
    for version in (0, 1):
        deploy(state, serve, version)
    verbs = {
        "remove": lambda: remove(state, serve),
        "roll back": lambda: rollback(state, serve),
        "deploy 3": lambda: deploy(state, serve, 3),
    }
    (error,) = while_it_comes_up(state, serve, verbs[act])
    assert said in str(error)
    assert {item.version: item.role for item in state.deployments()} == left
    assert {name for name in serve.live if name != "raymlops"} == {f"flights--v{version}" for version in left}


def test_a_kill_while_a_version_comes_up_is_made_good_by_the_same_verb(state, serve):
    """It is on its way; the same verb waits for it, writes nothing twice, and the version before it is known."""

    class Killed(BaseException):
        pass

    class Falling(FakeServe):
        def put(self, config):
            raise Killed

    deploy(state, serve, 1)
    with pytest.raises(Killed):
        deploy(state, Falling(dashboard_url=ELSEWHERE, live=serve.live), 2)
    assert [one.version for one in state.model("flights").coming] == [2]
    done = deploy(state, serve, 2)
    assert roles(state) == {"flights--v1": "warm", "flights--v2": "champion"}
    assert [event.action for event in state.events()] == ["deploy", "deploy.start", "deploy", "deploy.start"]
    assert record_of(done, 2).previous_version == 1
    assert rollback(state, serve).version == 1


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
    assert routes(deploy(state, serve, 2).plan.details)["/models/flights"] == "flights--v2"
    assert not deploy(state, serve, 2).changed
    assert rollback(state, serve).version == 1


def test_a_rollback_does_not_wait_for_the_version_it_leaves(state, serve):
    """Version 2 broke after it went live, and Serve was started anew since: version 1 takes over all the same."""
    deploy(state, serve, 1)
    deploy(state, serve, 2)
    serve.live = {}
    serve.unhealthy = {"flights--v2"}
    assert rollback(state, serve).version == 1
    assert roles(state) == {"flights--v1": "champion", "flights--v2": "warm"}


def test_a_rollback_finds_what_was_live_behind_any_number_of_gates(state, serve):
    """Also when the model was taken down and deployed again in between."""
    deploy(state, serve, 1)
    deploy(state, serve, 2)
    remove(state, serve)
    for version in range(150):
        state.record(action="gate.refuse", subject=f"flights/{version}")
    with pytest.raises(NotFoundError, match="not served"):
        rollback(state, serve)
    deploy(state, serve, 2)
    assert rollback(state, serve).version == 1


def test_a_rollback_passes_over_a_version_whose_bundle_is_gone(state, serve):
    """Version 2 is not up and has no bundle: version 1 takes the route, and the record and the event name version 2."""
    serve.cpus = 8.0
    for version, uri in ((1, "/bundles"), (2, "/gone"), (3, "/bundles")):
        deploy(state, serve, version, uri=uri)
    put(state, "flights", [one for one in state.deployments() if one.role == "champion"])
    record = rollback(state, serve)
    assert (record.version, roles(state)) == (1, {"flights--v1": "champion", "flights--v3": "warm"})
    assert [warning for warning in record.warnings if "version 2" in warning and "/gone/manifest.json" in warning]
    assert next(one for one in state.events() if one.action == "rollback").why == (
        "from version 3 to version 1, past 2 without a bundle"
    )
    with pytest.raises(NotFoundError, match="rolled back from: 3"):
        rollback(state, serve)


def test_a_rollback_to_a_version_that_is_up_needs_no_bundle(state, serve):
    """It takes the route as it runs; where nothing else is left, the refusal names the version without a bundle."""
    deploy(state, serve, 1, uri="/gone")
    deploy(state, serve, 2)
    assert rollback(state, serve).version == 1
    deploy(state, serve, 2)
    put(state, "flights", [one for one in state.deployments() if one.role == "champion"])
    with pytest.raises(NotFoundError, match="lost its bundle: 1"):
        rollback(state, serve)
    assert state.events()[0].action == "deploy"


def test_a_rollback_gives_the_route_back_although_a_shadow_comes_up(state, serve):
    """Version 3 would only get copies: it is not what went wrong."""
    serve.cpus = 8.0
    deploy(state, serve, 1)
    deploy(state, serve, 2)
    serve.slow = {"flights--v3"}
    new = Deployment("flights", 3, BundleRef("/bundles", "d" * 64), "run3", "warm")
    goal = {"champion": 2, "weight": None, "shadow": 0.5, "rollout": None}
    request = Request("deploy.shadow", "a test", "me", datetime.now(UTC), 30.0)
    state.change("flights", lambda model: bring(model, new, goal=goal, request=request, up=False))
    assert rollback(state, serve).version == 1
    assert roles(state)["flights--v1"] == "champion"


def test_an_alias_that_does_not_follow_is_a_warning():
    """Whatever of ours it raises: the version is live, which is what the caller must hear."""

    def follow(version):
        raise ConfigError([], hint="tracking.password cannot be read")

    (warning,) = followed(follow, 1)
    assert warning.startswith("version 1 is live, but the alias champion was not set")


def test_an_mlflow_that_hangs_holds_nobody():
    """The alias is given up on; the controller sets it."""
    over = threading.Event()
    with pytest.raises(TrackingError, match=r"did not answer within 0\.01 s"):
        within(0.01, lambda: over.wait(60))
    over.set()


def test_a_rollback_opens_no_endpoint(state, serve):
    """Version 1 was deployed without keys, 2 with: 1 asks for them since then, so that its flip is not waited for."""
    deploy(state, serve, 1)
    deploy(state, serve, 2, auth="keys")
    sent = len(serve.sent)
    rollback(state, serve)
    (options,) = serve.live["flights--v1"]["deployments"]
    assert options["user_config"]["access"]["required"]
    assert len(serve.sent) == sent + 1


def test_a_removal_ends_once_what_was_removed_is_gone(state):
    """Its replicas still hold their resources for a few looks, which the next deploy may need."""

    class Lingering(FakeServe):
        looks = 5

        def get(self):
            found = super().get()
            if self.looks and "flights--v1" in self.started and "flights--v1" not in self.live:
                self.looks -= 1
                found["applications"]["flights--v1"] = {"status": "DELETING", "route_prefix": None, "deployments": {}}
            return found

    serve = Lingering(dashboard_url=ELSEWHERE)
    deploy(state, serve, 1)
    remove(state, serve)
    assert "flights--v1" not in serve.get()["applications"]


def test_a_version_without_room_is_refused_before_anything_changes(state, serve):
    """Two replicas of 1 CPU beside 0.5 CPU that are served do not fit 2 CPUs, and no training that ends would help."""
    deploy(state, serve, 1, cpus_per_replica=0.5)
    sent = len(serve.sent)
    with pytest.raises(InsufficientResourcesError, match=r"version 2 requests 2 x 1 CPU.* room for 1") as caught:
        deploy(state, serve, 2, min_replicas=2, cpus_per_replica=1.0)
    assert "held by Serve application flights--v1: 0.5 CPU" in str(caught.value)
    assert (roles(state), len(serve.sent), len(state.events())) == ({"flights--v1": "champion"}, sent, 2)


def test_the_oldest_version_makes_room_for_the_newest(state, serve):
    """Versions of 0.8 CPU on 2 CPUs: the third comes up once the first is gone, and after it the first once it is."""
    for version in (1, 2, 3):
        deploy(state, serve, version, cpus_per_replica=0.8, max_replicas=1)
    assert roles(state) == {"flights--v2": "warm", "flights--v3": "champion"}
    assert [rollback(state, serve).version for _ in range(2)] == [2, 1]
    assert roles(state) == {"flights--v1": "champion", "flights--v2": "warm"}
    alive = [{name for name in serve.routes(index) if name != "raymlops"} for index in range(len(serve.sent))]
    assert all(len(names) <= 2 for names in alive)


def test_where_nodes_may_be_added_nothing_is_refused(state, serve):
    """Serve asks the autoscaler for what is missing."""
    serve.grows = True
    deploy(state, serve, 1, min_replicas=4, max_replicas=4, cpus_per_replica=1.0)
    assert roles(state) == {"flights--v1": "champion"}


class Locking(FakeServe):
    """Serve at whose second version a process begins to hold the state database."""

    holder = None

    def put(self, config):
        super().put(config)
        if self.holder is None and "flights--v2" in self.live:
            self.holder = subprocess.Popen([sys.executable, "-c", HOLD, self.path], stdin=subprocess.PIPE, stdout=-1)
            self.holder.stdout.readline()

    def free(self):
        self.holder.communicate(b"")


HOLD = """if True:
    import sqlite3, sys
    held = sqlite3.connect(sys.argv[1], isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def impatient(url):
    """Open the state so that it waits 50 ms for a lock, not 15 s."""
    engine = open_engine(url)
    sa.event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA busy_timeout = 50"))
    State.open(url).close()
    with State(engine) as state:
        yield state


@pytest.fixture
def locking(impatient):
    serve = Locking(dashboard_url=ELSEWHERE)
    serve.path = impatient._engine.url.database
    deploy(impatient, serve, 1)
    yield serve
    serve.free()


def test_a_deploy_waits_for_a_locked_database(impatient, locking, caplog):
    """It says who holds it, and goes on once that has ended."""

    class Freeing(logging.Handler):
        def emit(self, record):
            locking.free()

    logging.getLogger("raymlops.lifecycle.live.change").addHandler(handler := Freeing())
    deploy(impatient, locking, 2)
    logging.getLogger("raymlops.lifecycle.live.change").removeHandler(handler)
    assert roles(impatient) == {"flights--v1": "warm", "flights--v2": "champion"}
    assert f"is locked by process {locking.holder.pid}" in caplog.text


def test_a_deploy_that_waits_no_longer_for_a_database_says_who_goes_on(impatient, locking, monkeypatch):
    """Its change is written: a controller completes it."""
    monkeypatch.setattr("raymlops.lifecycle.live.change.SHORT_S", 0.2)
    with pytest.raises(UnreachableError, match="is locked by process") as caught:
        deploy(impatient, locking, 2)
    assert "the controller continues with it" in caught.value.hint
    assert [one.version for one in impatient.model("flights").coming] == [2]
    locking.free()
    converge(impatient, locking)
    assert roles(impatient)["flights--v2"] == "champion"
