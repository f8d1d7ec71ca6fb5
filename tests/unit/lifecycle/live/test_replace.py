"""``serve.update: replace``: the live version ends before the next one starts, on a Serve that takes its time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from canaries import beside, share, take_back, version_of
from fake_serve import FakeServe
from states import SERVE, converge, deploy

from raymlops.errors import DeployError, InsufficientResourcesError, RefusedError
from raymlops.lifecycle.live.capacity import leaving_first
from raymlops.lifecycle.live.change import record_of
from raymlops.lifecycle.live.outage import START_ACTIONS, last_start, outage
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.live.transitions import ROUTE, Request, bring
from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.records import BundleRef
from raymlops.state.audit import AuditEvent, changes_of
from raymlops.state.store import Deployment

ALONE = SERVE.model_copy(update={"update": "replace", "cpus_per_replica": 1.0})
BROKEN = BundleRef("/broken", "d" * 64)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Ending(FakeServe):
    """Serve with room for one replica, on which what is deleted is still ending at the next look."""

    def __init__(self):
        super().__init__(dashboard_url="http://dashboard:8265", cpus=1.0)
        self.ending = {}

    def put(self, config):
        before = dict(self.live)
        super().put(config)
        self.ending |= dict.fromkeys(before.keys() - self.live.keys(), 2)
        held = {name for name in (*self.live, *self.ending) if name.startswith("m--")}
        assert len(held) <= 1, f"{held} are up at once"

    def get(self):
        self.ending = {name: looks - 1 for name, looks in self.ending.items() if looks and name not in self.live}
        details = super().get()
        for name in self.ending:
            details["applications"][name] = {"status": "DELETING", "route_prefix": None, "deployments": {}}
        return details


@pytest.fixture
def serve():
    return Ending()


def versions(state):
    return {item.version: item.role for item in state.deployments("m")}


def live(serve):
    return {name: config["route_prefix"] for name, config in serve.live.items()}


def request(action="deploy", **more):
    return Request(action, "a test", "me", NOW, 60.0, **more)


def test_a_version_starts_once_the_one_it_replaces_has_ended(state, serve):
    """There is room for one; afterwards nothing is kept warm, and it is said how long nobody answered."""
    deploy(state, serve, section=ALONE)
    done = deploy(state, serve, version=2, section=ALONE)
    assert (versions(state), live(serve)) == ({2: "champion"}, {"m--v2": "/models/m", "raymlops": "/"})
    record = record_of(done, 2)
    assert record.previous_version == 1
    assert record.away_s is not None
    started, ended = (event.ts for event in reversed([*changes_of(state, "m", START_ACTIONS)][:2]))
    assert record.away_s == (ended - started).total_seconds() > 0


def test_what_is_replaced_stays_desired_until_the_other_one_is_up(state, serve):
    """Nobody has the route meanwhile, the list of models says so, and it is said what the version waits for."""
    deploy(state, serve, section=ALONE)
    serve.slow = {"m--v2"}
    new = Deployment("m", 2, BundleRef("/bundles", "d" * 64), "run", "champion", ALONE.model_dump(mode="json"))
    asked = request(replaces=True)
    state.change("m", lambda model: bring(model, new, goal=ROUTE, request=asked, up=False))
    assert versions(state) == {1: "champion", 2: "warm"}
    reconciler = Reconciler(state, serve, serve=SERVE)
    while reconciler.step().acted:
        pass
    assert live(serve) == {"raymlops": "/"}
    look = reconciler.step()
    assert "version 2 of m starts once version 1 has ended" in look.conditions["m"].reason
    (options,) = serve.live["raymlops"]["deployments"]
    assert [(one["name"], one["away"]) for one in options["user_config"]["models"]] == [("m", True)]
    converge(state, serve)
    assert live(serve) == {"m--v2": None, "raymlops": "/"}
    serve.slow = set()
    converge(state, serve)
    (options,) = serve.live["raymlops"]["deployments"]
    assert (live(serve)["m--v2"], "away" in options["user_config"]["models"][0]) == ("/models/m", False)


@pytest.mark.parametrize("update", ["replace", "beside"])
def test_a_version_that_does_not_come_up_gives_the_place_back(state, serve, update):
    """It ends first, too, whatever the version of before was deployed with; nobody has to ask for that one."""
    deploy(state, serve, section=ALONE.model_copy(update={"update": update}))
    with pytest.raises(DeployError) as raised:
        deploy(state, serve, version=2, bundle=BROKEN, section=ALONE)
    assert raised.value.hint.startswith("Version 1 is brought back.")
    for _ in range(4):
        converge(state, serve)
    assert (versions(state), live(serve)) == ({1: "champion"}, {"m--v1": "/models/m", "raymlops": "/"})
    assert converge(state, serve).conditions == {}


def test_a_rollback_replaces_too(state, serve):
    """By the settings of the champion, which are newer than those of the version that it goes back to."""
    deploy(state, serve, section=ALONE.model_copy(update={"update": "beside"}))
    deploy(state, serve, version=2, section=ALONE)
    assert take_back(state, serve).away_s is not None
    assert (versions(state), live(serve)) == ({1: "champion"}, {"m--v1": "/models/m", "raymlops": "/"})


def test_a_rollback_takes_back_a_version_that_has_not_replaced_the_other_yet(state, serve):
    """The one that was live comes back, and is the one that stays."""
    deploy(state, serve, section=ALONE)
    serve.slow = {"m--v2"}
    new = Deployment("m", 2, BundleRef("/bundles", "d" * 64), "run", "champion", ALONE.model_dump(mode="json"))
    state.change("m", lambda model: bring(model, new, goal=ROUTE, request=request(replaces=True), up=False))
    for _ in range(4):
        converge(state, serve)
    assert "m--v2" in live(serve)
    take_back(state, serve)
    assert (versions(state), live(serve)["m--v1"]) == ({1: "champion"}, "/models/m")


@pytest.mark.parametrize("asked", [TrafficRequest(weight=0.1), TrafficRequest(shadow=0.5)])
def test_nothing_runs_beside_a_version_that_has_the_place_to_itself(state, serve, asked):
    """A canary, a shadow, and what only comes up; each is refused with what to change."""
    deploy(state, serve, section=ALONE)
    why = "version 2 of m cannot run beside version 1: serve.update is replace"
    with pytest.raises(RefusedError, match=why):
        beside(state, serve, 2, section=ALONE)
    new = Deployment("m", 2, BundleRef("/bundles", "d" * 64), "run", "warm", ALONE.model_dump(mode="json"))
    with pytest.raises(RefusedError, match=why):
        bring(state.model("m"), new, goal=asked.goal(1), request=request(asked.action, replaces=True), up=False)
    assert versions(state) == {1: "champion"}


def test_nothing_comes_up_beside_a_replacement(state, serve):
    """Whatever its own settings say: there is no champion to stand beside."""
    deploy(state, serve, section=ALONE)
    new = Deployment("m", 2, BundleRef("/bundles", "d" * 64), "run", "champion", ALONE.model_dump(mode="json"))
    state.change("m", lambda model: bring(model, new, goal=ROUTE, request=request(replaces=True), up=False))
    with pytest.raises(RefusedError, match="version 2 of m is replacing the champion"):
        share(state, serve, 3, TrafficRequest(weight=0.1))
    with pytest.raises(RefusedError, match="version 2 of m is replacing the champion"):
        beside(state, serve, 1, section=ALONE, max_rows=7)  # new settings for the one that is being replaced


def test_a_version_that_replaces_another_only_has_to_fit_in_its_place(state, serve):
    """There is one CPU: nothing fits beside version 1, and what needs two does not fit in its place either."""
    deploy(state, serve, section=ALONE)
    standing = state.desired()

    def new(**more):
        return version_of(2, section=ALONE, **more)

    assert leaving_first(serve, standing, new(), replaces=True) == ()
    with pytest.raises(InsufficientResourcesError, match="requests 1 x 1 CPU, and beside") as raised:
        leaving_first(serve, standing, new(update="beside"))
    assert raised.value.hint.endswith("With serve.update: replace the live version ends first, which is an outage.")
    with pytest.raises(
        InsufficientResourcesError, match="requests 1 x 2 CPU, and beside what is served there is room for 0"
    ):
        leaving_first(serve, standing, new(cpus_per_replica=2.0), replaces=True)
    with pytest.raises(InsufficientResourcesError, match=r"1 x 1 CPU, 1\.5 GB of memory, .* has 1 CPU on 1 node"):
        leaving_first(serve, standing, new(memory_gb=1.5), replaces=True)
    with pytest.raises(InsufficientResourcesError, match="requests 1 x 1 CPU, 1 fast, and beside"):
        leaving_first(serve, standing, new(resources_per_replica={"fast": 1.0}), replaces=True)


def test_a_version_that_may_go_to_zero_has_to_fit_once(state, serve):
    """It comes up with one replica, so that the champion does not end for a version that never starts."""
    deploy(state, serve, section=ALONE)
    new = version_of(2, section=ALONE, min_replicas=0, cpus_per_replica=2.0)
    with pytest.raises(InsufficientResourcesError, match="requests 1 x 2 CPU"):
        leaving_first(serve, state.desired(), new, replaces=True)


def test_the_place_of_a_model_that_is_being_replaced_is_kept_for_it(state, serve):
    """Nobody is in it while its old version has ended and the next one starts, and a larger one would take it."""
    serve.cpus = 3.0
    for name in ("m", "n"):
        deploy(state, serve, name, section=ALONE)
    new = Deployment("m", 2, BundleRef("/bundles", "d" * 64), "run", "champion", ALONE.model_dump(mode="json"))
    state.change("m", lambda model: bring(model, new, goal=ROUTE, request=request(replaces=True), up=False))
    Reconciler(state, serve, serve=SERVE).step()
    assert live(serve) == {"n--v1": "/models/n", "raymlops": "/"}

    def other(**more):
        return replace(version_of(2, section=ALONE, **more), name="n")

    assert leaving_first(serve, state.desired(), other(cpus_per_replica=2.0), replaces=True) == ()
    with pytest.raises(InsufficientResourcesError, match="held by version 2 of m, which replaces another: 1 CPU"):
        leaving_first(serve, state.desired(), other(cpus_per_replica=2.5), replaces=True)
    assert leaving_first(serve, state.desired(), other()) == ()
    with pytest.raises(InsufficientResourcesError, match="held by version 2 of m"):
        leaving_first(serve, state.desired(), other(cpus_per_replica=2.0))


def event(number, action, second, before, after):
    """Return an audit event; champions are negative."""
    sides = (
        [Deployment("m", abs(v), BROKEN, "run", "champion" if v < 0 else "warm", {}).to_dict() for v in side]
        for side in (before, after)
    )
    return AuditEvent(number, NOW + timedelta(seconds=second), "me", action, "m", *sides, "")


def test_the_last_start_is_measured_by_its_two_events():
    """Version 3 took 41 s; version 2, whose start failed at second 10, was then promoted where it stood."""
    events = [
        event(1, "deploy.start", 0, [-1], [-1, 2]),
        event(2, "deploy.start.undone", 10, [-1, 2], [-1]),
        event(3, "deploy", 90, [-1, 2], [1, -2]),
    ]
    assert last_start(events[::-1]) is None
    assert outage(2, []) == (
        "version 2 ends first, and nobody answers until the next one is up (no start has been measured yet)"
    )
    events += [event(4, "promote.start", 100, [-2], [-2, 3]), event(5, "promote", 141, [-2, 3], [-3])]
    assert last_start(events[::-1]) == (3, 41.0)
    assert outage(3, events[::-1]).endswith("until the next one is up (version 3 took 41 s to come up)")
