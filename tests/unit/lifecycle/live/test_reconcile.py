"""Steps towards the desired state, against a real state database and Serve's API in memory."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from canaries import share, take_back, version_of
from fake_serve import FakeServe
from states import SERVE, deploy
from stored import put

from raymlops.cluster.placement import Holder
from raymlops.errors import DeployError
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.live.transitions import ROUTE, Request, bring
from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.records import BundleRef
from raymlops.serving.names import DEPLOYMENT
from raymlops.state.conditions import EVERYTHING, conditions
from raymlops.state.store import Change, Deployment, State
from raymlops.state.transitions import newest_transition

MENDED = SERVE.model_copy(update={"max_rows": 5})


class Mending(FakeServe):
    """Serve on which new settings make an unhealthy version healthy."""

    def put(self, config):
        super().put(config)
        self.unhealthy = set()


def test_new_settings_can_mend_a_champion_that_is_unhealthy(state):
    """What it was before they were sent says nothing of them."""
    serve = Mending(dashboard_url="http://dashboard:8265")
    deploy(state, serve)
    serve.unhealthy = {"m--v1"}
    assert deploy(state, serve, section=MENDED).changed
    assert [item.serve["max_rows"] for item in state.deployments()] == [5]


def test_a_warm_version_that_is_unhealthy_gets_no_route(state):
    """Nothing new would be sent to it: it fails at once."""
    serve = FakeServe(dashboard_url="http://dashboard:8265")
    for version in (1, 2, 1):
        deploy(state, serve, version=version)
    serve.unhealthy, sent = {"m--v2"}, len(serve.sent)
    with pytest.raises(DeployError, match="m--v2 is UNHEALTHY"):
        deploy(state, serve, version=2)
    assert len(serve.sent) == sent
    assert {item.version: item.role for item in state.deployments()} == {1: "champion", 2: "warm"}


class Rationed(FakeServe):
    """Serve that has room for some replicas of a version only, and on which some fail."""

    room: ClassVar[dict[str, int]] = {}
    """Most replicas of an application; none of one that fails."""

    def _details(self, config):
        details, most = super()._details(config), self.room.get(config["name"])
        if most is not None:
            details["deployments"][DEPLOYMENT]["replicas"] = [{"state": "RUNNING"}] * most
            details |= (
                {"status": "DEPLOYING", "message": "waiting for 0.2 CPU"} if most else {"status": "DEPLOY_FAILED"}
            )
        return details


@pytest.fixture
def serve():
    return Rationed(dashboard_url="http://dashboard:8265")


@pytest.fixture
def reconciler(state, serve):
    return Reconciler(state, serve, serve=SERVE)


def begin(state, version, *, name="m", timeout_s=60.0, ago_s=0.0, digest="d" * 64, **settings):
    """Desire that a version comes up for the route, and return when."""
    began = datetime.now(UTC) - timedelta(seconds=ago_s)
    new = Deployment(name, version, BundleRef("/bundles", digest), "run", "champion", settings)
    request = Request("deploy", "a test", "me", began, timeout_s)
    state.change(name, lambda model: bring(model, new, goal={**ROUTE, "configured": True}, request=request, up=False))
    return began


def steps(reconciler, at):
    """Take the steps that are due at a time, and return how many, and the last look."""
    taken = 0
    while (look := reconciler.step(at)).acted:
        taken += 1
    return taken, look


def champion(state, name="m"):
    return next((item.version for item in state.deployments(name) if item.role == "champion"), None)


def test_a_version_that_does_not_come_up_in_time_is_taken_back(state, serve, reconciler):
    """It is said what it did instead; the version before it still has the route."""
    deploy(state, serve)
    serve.slow = {"m--v2"}
    began = begin(state, 2)
    steps(reconciler, began)
    _, look = steps(reconciler, began + timedelta(seconds=59))
    assert look.conditions["m"].reason.startswith("version 2 of m comes up: 0 of 1 replicas run")
    _, look = steps(reconciler, began + timedelta(seconds=60))
    assert look.conditions == {}
    assert (champion(state), set(serve.live)) == (1, {"m--v1", "raymlops"})
    failed = newest_transition(state, "m", 2)
    assert failed.reason.startswith("not ready in time: version 2 of m comes up")


def test_the_time_to_come_up_is_counted_from_the_first_step(state, serve, reconciler):
    """It was requested an hour ago, while Serve was away: its minute begins with the step that sends it."""
    deploy(state, serve)
    serve.slow = {"m--v2"}
    first = begin(state, 2, ago_s=3600.0) + timedelta(seconds=3600)
    _, look = steps(reconciler, first)
    assert "m--v2" in serve.live
    _, look = steps(reconciler, first + timedelta(seconds=59))
    assert look.conditions["m"].reason.startswith("version 2 of m comes up")
    steps(reconciler, first + timedelta(seconds=60))
    assert "m--v2" not in serve.live


def test_who_holds_the_lock_over_steps_for_long_is_named(state, serve, reconciler):
    """Its process may be stopped, or its machine asleep; once it has let go, nothing is said any more."""
    deploy(state, serve)
    at = begin(state, 2)
    with State.open(str(state._engine.url)) as other, other.exclusive("reconciling", wait_s=0):
        assert reconciler.step(at).held_by is None
        assert conditions(state) == {}
        look = reconciler.step(at + timedelta(seconds=5))
        reason = conditions(state)[EVERYTHING].reason
        assert re.fullmatch(rf".+@.+ \(process {os.getpid()}: reconciling\) since .+ UTC holds the lock .+", reason)
        assert (look.held_by.message, look.held_s, look.acted) == (reason, 5.0, False)
    steps(reconciler, at + timedelta(seconds=6))
    assert (champion(state), conditions(state)) == (2, {})


def test_a_version_takes_the_route_where_there_is_no_room_for_all_its_replicas(state, serve, reconciler):
    """The holder runs three, and two more never come: it goes ahead after a while."""
    deploy(state, serve, section=SERVE.model_copy(update={"min_replicas": 3, "max_replicas": 3}))
    serve.room = {"m--v2": 1}
    began = begin(state, 2, max_replicas=3)
    steps(reconciler, began)
    _, look = steps(reconciler, began + timedelta(seconds=19))
    assert (champion(state), look.conditions["m"].since) == (1, began)
    steps(reconciler, began + timedelta(seconds=20))
    assert champion(state) == 2
    assert serve.live["m--v2"]["route_prefix"] == "/models/m"


def test_what_fails_is_started_anew_after_pauses_that_double(state, serve, reconciler):
    """Serve has given it up, and would not try again by itself; what is not due is not touched."""
    deploy(state, serve)
    serve.room = {"m--v1": 0}
    at, started = datetime.now(UTC), []
    for second in range(40):
        before = serve.started.count("m--v1")
        _, look = steps(reconciler, at + timedelta(seconds=second))
        if serve.started.count("m--v1") > before:
            started.append(second)
    assert started == [5, 15, 35]
    condition = look.conditions["m"]
    assert (condition.attempts, condition.since) == (3, at)
    serve.room = {}
    assert steps(reconciler, at + timedelta(seconds=80))[1].conditions == {}


def test_a_version_on_its_way_that_is_not_desired_stops_nothing(state, serve, reconciler):
    """As an earlier release left one: its champion had been replaced while it got new settings."""
    deploy(state, serve)
    begin(state, 2)
    state.change("m", lambda model: Change(replace(model, deployments=model.deployments[:1]), "deploy", "a test"))
    deploy(state, serve, "n")
    assert state.desired().coming == ()
    assert serve.live.keys() >= {"m--v1", "n--v1"}


def test_a_config_that_serve_refuses_fails_the_version_that_came_last(state, serve, reconciler):
    """What was desired before is sent again."""
    deploy(state, serve)
    put = serve.put

    def refuse(config):
        if any(one["name"] == "m--v2" for one in config["applications"]):
            raise DeployError("Serve refuses it: no such field")
        put(config)

    serve.put = refuse
    began = begin(state, 2)
    begin(state, 1, name="other")  # newer, and not at fault
    assert (steps(reconciler, began)[1].conditions, champion(state), champion(state, "other")) == ({}, 1, 1)
    failed = newest_transition(state, "m", 2)
    assert (failed.status, failed.reason) == ("failed", "Serve refuses it: no such field")


def test_what_cannot_be_written_fails_alone(state, serve, reconciler):
    """A share that leaves the others too little by the time that its version is up: another model goes on."""
    for version in (1, 2):
        deploy(state, serve, version=version)
    began = datetime.now(UTC)
    new = Deployment("m", 3, BundleRef("/bundles", "d" * 64), "run", "warm", {})
    goal = {"champion": 2, "weight": 0.6}
    request = Request("deploy.canary", "a test", "me", began, 60.0)
    state.change("m", lambda model: bring(model, new, goal=goal, request=request, up=False))
    put(state, "m", [replace(item, weight=0.6 if item.version == 1 else 0) for item in state.deployments("m")])
    begin(state, 1, name="other")
    steps(reconciler, began)
    assert champion(state, "other") == 1
    assert newest_transition(state, "m", 3).status == "failed"


def test_three_canaries_may_have_all_of_the_traffic(state, serve):
    """34, 56 and 10 percent add up to a little more than 1 in binary."""
    deploy(state, serve)
    for version, weight in ((2, 0.34), (3, 0.56), (4, 0.1)):
        share(state, serve, version, TrafficRequest(weight=weight))
    assert sum(item.weight for item in state.deployments()) == pytest.approx(1)


def test_a_champion_that_fails_is_started_anew_before_a_warm_version_that_does(state, serve, reconciler):
    """Both bundles are away; once the champion's is back it must not wait for the other's."""
    for version in (1, 2):
        deploy(state, serve, version=version)
    serve.room = {"m--v1": 0, "m--v2": 0}
    at = datetime.now(UTC)
    for second in range(30):
        steps(reconciler, at + timedelta(seconds=second))
    assert serve.started.count("m--v2") > serve.started.count("m--v1")
    serve.room = {"m--v1": 0}
    for second in range(30, 80):
        steps(reconciler, at + timedelta(seconds=second))
    assert serve.get()["applications"]["m--v2"]["status"] == "RUNNING"


@pytest.mark.parametrize("moment", [0, 1])
def test_a_config_for_what_is_no_longer_desired_is_not_sent(state, serve, reconciler, moment):
    """A key was revoked after the state was read, before or just as it is sent: the key would be good again.

    The process that sends it may have been stopped for long, and another one holds the lock by now.
    """
    deploy(state, serve)
    began, read, sent, looks = begin(state, 2), serve.get, len(serve.sent), itertools.count()

    def get():
        if next(looks) == moment:
            state.record(action="key.revoke", subject="api-key:k")
        return read()

    serve.get = get
    assert reconciler.step(began).acted
    assert len(serve.sent) == sent
    steps(reconciler, began)
    assert "m--v2" in serve.live


class Full(FakeServe):
    """Serve without room for the second version's replica."""

    placed: ClassVar[dict[str, str]] = {}
    asked = 0

    def _details(self, config):
        details = super()._details(config)
        if config["name"] == "m--v2":
            details["status"] = "DEPLOYING"
            details["deployments"][DEPLOYMENT]["replicas"] = [{"state": "STARTING", **self.placed}]
        return details

    def holders(self):
        self.asked += 1
        mine = [holder for holder in super().holders() if "v2" not in holder.name]
        return [Holder("task training of job 01", {"CPU": 1.5}), *mine]


class Dying(FakeServe):
    """Serve that says of what died how that ended."""

    def _details(self, config):
        return super()._details(config) | {"message": "OutOfMemoryError: killed"}


def began(state, version):
    """Write a deploy without waiting for it."""
    new = Deployment("m", version, BundleRef("/bundles", "d" * 64), "run", "warm", SERVE.model_dump(mode="json"))
    request = Request("deploy", "a test", "me", state.now(), 60.0)
    state.change("m", lambda model: bring(model, new, goal=ROUTE, request=request, up=False))


def test_a_version_without_room_says_who_has_it(state):
    """Asked now and then only, and while a replica is on no node only; who fails in the end says it too."""
    serve = Full(dashboard_url="http://dashboard:8265")
    deploy(state, serve)
    begun = state.now()
    began(state, 2)
    verb, controller = (Reconciler(state, serve, serve=SERVE) for _ in range(2))
    for second in range(5):
        verb.step(begun + timedelta(seconds=second))
    assert serve.asked == 0
    held = "\na replica waits for room, which is held by:"
    held += "\n  task training of job 01: 1.5 CPU\n  Serve application m--v1: 0.2 CPU"
    for second in range(7, 20):
        for reconciler in (verb, controller):
            reconciler.step(begun + timedelta(seconds=second))
            assert conditions(state)["m"].reason.endswith(f"m--v2 is DEPLOYING{held}")
    assert serve.asked == 2
    serve.placed = {"node_id": "n1"}
    verb.step(begun + timedelta(seconds=40))
    assert conditions(state)["m"].reason.endswith("m--v2 is DEPLOYING")
    serve.placed = {}
    verb.step(begun + timedelta(seconds=50))
    verb.step(begun + timedelta(seconds=70))
    assert held in newest_transition(state, "m", 2).reason
    assert serve.asked == 3


def failed_at(state, serve, seconds):
    """Step at these seconds after a version began, and return when it failed; None if it did not."""
    deploy(state, serve)
    begun = state.now()
    began(state, 2)
    reconciler = Reconciler(state, serve, serve=SERVE)
    for second, placed in seconds:
        serve.placed = {"node_id": "n1"} if placed else {}
        reconciler.step(begun + timedelta(seconds=second))
        if newest_transition(state, "m", 2).status == "failed":
            return second
    return None


@pytest.mark.parametrize(
    ("grows", "placed", "failed"),
    [
        (True, 300, 355),  # 60 s from when it was last seen without a place, at 295 s
        (True, 10_000, 955),  # no node for 900 s: 60 s from the last look in them, at 895 s
        (False, 300, 65),
        (None, 300, 65),
    ],
    ids=["a node in 300 s", "no node", "no autoscaler", "not said"],
)
def test_the_time_to_come_up_begins_when_a_replica_has_a_place(state, grows, placed, failed):
    """An autoscaler boots a machine meanwhile; where none adds nodes the time is counted from the first step."""
    serve = Full(dashboard_url="http://dashboard:8265", grows=grows)
    assert failed_at(state, serve, [(second, second >= placed) for second in range(5, 1200, 10)]) == failed


def test_a_new_champion_whose_replicas_die_before_it_has_the_route_says_so(state):
    """With its own last error, and not what another one lacks."""
    serve = Dying(dashboard_url="http://dashboard:8265")
    deploy(state, serve)
    began(state, 2)
    reconciler = Reconciler(state, serve, serve=SERVE)
    while newest_transition(state, "m", 2).status != "done":
        reconciler.step(state.now())
    serve.unhealthy.add("m--v2")
    for _ in range(4):
        reconciler.step(state.now())
    assert serve.live["m--v1"]["route_prefix"] == "/models/m"
    said = "version 2 was up, and its replicas died: m--v2 is UNHEALTHY:\nOutOfMemoryError: killed"
    assert conditions(state)["m"].reason == said


def test_a_version_whose_replicas_die_while_it_comes_up_says_so(state):
    """Before it has as many as the holder of the route."""
    serve = Dying(dashboard_url="http://dashboard:8265")
    deploy(state, serve)
    began(state, 2)
    reconciler = Reconciler(state, serve, serve=SERVE)
    reconciler.step(state.now())
    serve.unhealthy.add("m--v2")
    reconciler.step(state.now())
    assert "its replicas died: m--v2 is UNHEALTHY:\nOutOfMemoryError" in newest_transition(state, "m", 2).reason


def test_another_bundle_under_a_number_comes_up_before_it_gets_the_route(state, serve, reconciler):
    """The version was removed while Serve was away, and registered anew: what still runs by its number is not it."""
    for version in (1, 2, 1):
        deploy(state, serve, version=version)
    put(state, "m", [item for item in state.deployments("m") if item.version == 1])
    began = begin(state, 2, digest="e" * 64)
    assert reconciler.step(began).acted
    sent = serve.live["m--v2"]
    assert (sent["args"]["digest"], sent["route_prefix"], champion(state)) == ("e" * 64, None, 1)
    steps(reconciler, began)
    assert (serve.live["m--v2"]["route_prefix"], champion(state)) == ("/models/m", 2)


@pytest.mark.parametrize("other", [False, True])
def test_the_flip_without_all_replicas_waits_for_no_other_version(state, serve, reconciler, other):
    """One beside it, which comes up all the while, does not restart the twenty seconds."""
    deploy(state, serve, section=SERVE.model_copy(update={"min_replicas": 3, "max_replicas": 3}))
    serve.room, serve.slow = {"m--v2": 2}, {"m--v3"}
    at = begin(state, 2, max_replicas=3)
    if other:
        request = Request("deploy.beside", "a test", "me", state.now(), 600.0)
        state.change("m", lambda model: bring(model, version_of(3), goal={}, request=request, up=False))
    for second in range(22):
        steps(reconciler, at + timedelta(seconds=second))
    assert champion(state) == 2


def test_nobody_is_at_fault_while_something_else_is_desired(state, serve, reconciler):
    """Another verb wrote an event just after Serve refused a config: nothing is sent to find out for whom."""
    for name in ("a", "b"):
        deploy(state, serve, name)
    put = serve.put

    def refuse(config):
        if any(one["name"] == "a--v2" for one in config["applications"]):
            if not refused:
                state.record(action="key.revoke", subject="api-key:k")
            refused.append(config)
            raise DeployError("no such thing")
        put(config)

    serve.put, refused = refuse, []
    for name in ("a", "b"):
        at = begin(state, 2, name=name)
    steps(reconciler, at)
    steps(reconciler, at)
    assert [champion(state, name) for name in ("a", "b")] == [1, 2]


class Tight(FakeServe):
    """Serve with room for some replicas, which goes to applications in the order in which they were sent."""

    def __init__(self, cpus):
        super().__init__(dashboard_url="http://dashboard:8265", cpus=cpus)
        self.order = []

    def put(self, config):
        super().put(config)
        self.order = [name for name in self.order if name in self.live]
        self.order += [name for name in self.live if name not in self.order]

    def get(self):
        details, left = super().get(), self.cpus
        for name in self.order:
            cpus = self.live[name]["deployments"][0]["ray_actor_options"]["num_cpus"]
            for one in details["applications"][name]["deployments"].values():
                fits = int(min(left / cpus, len(one["replicas"]))) if cpus else len(one["replicas"])
                pending = len(one["replicas"]) - fits
                one["replicas"] = [{"state": "RUNNING", "node_id": "n1"}] * fits + [{"state": "STARTING"}] * pending
                left -= fits * cpus
                if pending and details["applications"][name]["status"] == "RUNNING":
                    details["applications"][name]["status"] = "DEPLOYING"
        return details

    def runs(self, name):
        found = self.get()["applications"].get(name, {"deployments": {}})["deployments"].values()
        return any(one["state"] == "RUNNING" for each in found for one in each["replicas"])

    def come_back(self, cpus):
        """Start anew with other room."""
        self.live, self.order, self.versions, self.cpus = {}, [], {}, cpus


ONE = SERVE.model_copy(update={"cpus_per_replica": 1.0, "max_replicas": 1})


def seconds(reconciler, at, count):
    """Take the steps of some seconds, and return when they are over."""
    for second in range(count):
        steps(reconciler, at + timedelta(seconds=second))
    return at + timedelta(seconds=count)


@pytest.mark.parametrize(
    ("beside_it", "cpus"),
    [("formerly", 1.0), ("beside", 1.0), ("canary", 1.0), ("shadow", 1.0), ("another model's", 2.0)],
)
def test_a_champion_without_room_gets_that_of_versions_on_standby(state, beside_it, cpus):
    """Serve comes back with less room, and a standby is placed first; they follow once the champion runs."""
    serve = Tight(10.0)
    reconciler = Reconciler(state, serve, serve=SERVE)
    standby = "a--v2" if cpus == 2.0 else "m--v1"
    if cpus == 2.0:
        for version in (2, 1):
            deploy(state, serve, "a", version, section=ONE)
        deploy(state, serve, version=3, section=ONE)
    else:
        for version in (1, 3):
            deploy(state, serve, version=version, section=ONE)
        if beside_it == "canary":
            share(state, serve, 1, TrafficRequest(weight=0.1), champion=3)
        elif beside_it == "shadow":
            share(state, serve, 1, TrafficRequest(shadow=0.5), champion=3)
    serve.come_back(cpus)
    at = seconds(reconciler, state.now(), 1)
    assert (serve.runs("m--v3"), serve.runs(standby)) == (False, True)
    assert conditions(state)["m"].reason.startswith("version 3 of m has no replica, and waits for room")
    at = seconds(reconciler, at, 7)
    assert (serve.runs("m--v3"), serve.runs(standby)) == (True, False)
    assert f"{standby} is DEPLOYING" in conditions(state)[standby[0]].reason
    serve.cpus = 10.0
    seconds(reconciler, at, 1)
    assert serve.runs(standby)
    assert conditions(state) == {}


def test_versions_on_standby_stay_away_while_a_champion_waits_for_room(state):
    """Where there is none even so, it is said of each; what is on its way and whoever has a route stays."""
    serve = Tight(10.0)
    reconciler = Reconciler(state, serve, serve=SERVE)
    for version in (2, 1):
        deploy(state, serve, "a", version, section=ONE)
    for version in (1, 3):
        deploy(state, serve, version=version, section=ONE.model_copy(update={"cpus_per_replica": float(version)}))
    serve.come_back(2.0)
    at = seconds(reconciler, state.now(), 20)
    assert serve.live.keys() - {"raymlops"} == {"a--v1", "m--v3"}
    assert conditions(state)["a"].reason == "version 2 of a is away while m--v3 waits for room"
    sent = len(serve.sent)
    seconds(reconciler, at, 30)
    assert len(serve.sent) == sent
    assert take_back(state, serve).version == 1
    assert serve.runs("m--v1")


def test_a_champion_that_fails_keeps_no_version_on_standby_away(state):
    """It is broken, however often it is started anew; a rollback finds the version before it up."""
    serve = Tight(10.0)
    reconciler = Reconciler(state, serve, serve=SERVE)
    for version in (1, 2):
        deploy(state, serve, version=version, section=ONE)
    serve.come_back(10.0)
    serve.unhealthy = {"m--v2"}
    seconds(reconciler, state.now(), 30)
    assert serve.runs("m--v1")


def test_a_champion_that_may_sleep_makes_nobody_leave(state):
    """It has no replica, and waits for none."""
    serve = Sleepy(dashboard_url="http://dashboard:8265")
    reconciler = Reconciler(state, serve, serve=SERVE)
    for version in (1, 2):
        deploy(state, serve, version=version, section=SERVE)
    serve.asleep = {"m--v2"}
    seconds(reconciler, state.now(), 30)
    assert "m--v1" in serve.live


class Sleepy(FakeServe):
    """Serve with applications that have no replica, and want none."""

    asleep: ClassVar[set[str]] = set()

    def _details(self, config):
        details = super()._details(config)
        if config["name"] in self.asleep:
            details["deployments"][DEPLOYMENT]["replicas"] = []
        return details
