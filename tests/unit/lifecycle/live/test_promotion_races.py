"""A rollback, an abort or a kill while a rollout is promoted: afterwards audit, state, Serve and the answer agree.

A real state database, Serve's API in memory. Who is second begins exactly where the first one is, by its own calls.
"""

from __future__ import annotations

import copy
import sqlite3
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from fake_serve import FakeServe
from waiting import told_of_waiting

from raymlops.cli.traffic import deployment_text
from raymlops.config.load import load_data
from raymlops.config.serve import RolloutSection
from raymlops.lifecycle.deploy import roll_back
from raymlops.lifecycle.live.change import change
from raymlops.lifecycle.live.lineup import LineUp, beside, with_champion
from raymlops.lifecycle.rollout.canary import TrafficRequest, abort, settle, share
from raymlops.lifecycle.rollout.controller import Controller
from raymlops.lifecycle.rollout.evidence import Reports, epoch_of
from raymlops.records import BundleRef
from raymlops.state.rollouts import rollouts, running
from raymlops.state.store import Deployment, State

START = datetime(2026, 1, 1, tzinfo=UTC)
LATER = START + timedelta(seconds=1)
GOOD = {"requests": 4000, "errors": 0, "slow": 0, "late": 0, "seconds_sum": 1.0}
DATA = {"project": {"name": "m"}, "recipe": {"import": "any:Recipe"}, "serve": {"ready_timeout_s": 2}}
SPEC = load_data(DATA).spec
DASHBOARD = "http://dashboard:8265"  # where no proxy is asked whether it answers


class Stopping(FakeServe):
    """Serve that calls ``on_put`` before it takes anything, and ``on_get`` before it tells anything.

    With ``falls`` version 2 crashes once it has the route.
    """

    on_put = on_get = None
    falls = False

    def put(self, config):
        if self.on_put is not None:
            self.on_put()
        super().put(config)

    def get(self):
        if self.on_get is not None:
            self.on_get()
        if self.falls:
            self.unhealthy = {name for name in ("m--v2",) if self.live.get(name, {}).get("route_prefix")}
        return super().get()


class Interrupted(State):
    """A state that calls ``after_reading`` once it has read something."""

    after_reading = None

    @contextmanager
    def reading(self):
        with super().reading() as connection:
            yield connection
        if self.after_reading is not None:
            self.after_reading()


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/state.db"


@pytest.fixture
def state(url):
    with State.open(url) as opened:
        yield opened


@pytest.fixture
def serve():
    return Stopping(dashboard_url=DASHBOARD)


@pytest.fixture
def reports(state, serve):
    """Return reports by which version 2, at its last step beside the champion 1, is promoted at the next look."""
    for version in (1, 2):
        put(state, serve, version, champion=version == 1)
    rollout = begin(state, serve)
    reports = Reports()
    reports.take("m", "a", 1, {epoch_of(rollout): {"2": GOOD, "champion": GOOD}})
    return reports


def deployment(version):
    settings = SPEC.serve.model_dump(mode="json")
    return Deployment("m", version, BundleRef("/bundles", "d" * 64), f"run{version}", "warm", settings)


def put(state, serve, version, *, champion):
    new = deployment(version)

    def decide(before):
        return LineUp(with_champion(before, new) if champion else beside(before, new), version)

    change(state, serve, "m", decide=decide, serve=SPEC.serve, action="deploy", why="")


def begin(state, serve):
    asked = TrafficRequest(weight=0.1, rollout=RolloutSection(steps=(10.0,), bake_s=0.0))
    share(state, serve, "m", version=2, champion=1, asked=asked, serve=SPEC.serve, why="", now=START)
    with state.reading() as connection:
        return running(connection, "m")[0]


def roll_back_elsewhere(url, serve):
    """Roll back as another process does; the alias follows at once."""
    with State.open(url) as state:
        return roll_back(SPEC, state, serve)


def once(function):
    """Return what calls a function the first time that it is called, and keep what came of it in ``results``."""
    results = []

    def call(*_args):
        if not results:
            results.append(None)
            results[0] = function()

    call.results = results
    return call


def killed_here(url, serve, *, number):
    """Return what a kill now would leave: a copy of the database, and Serve as it is."""
    file = url.removeprefix("sqlite:///")
    copy_of_it = f"{file}.{number}"
    with sqlite3.connect(file) as now, sqlite3.connect(copy_of_it) as copied:
        now.backup(copied)
    for connection in (now, copied):
        connection.close()
    return f"sqlite:///{copy_of_it}", FakeServe(dashboard_url=DASHBOARD, live=copy.deepcopy(serve.live))


def champion(state):
    return next(item.version for item in state.deployments("m") if item.role == "champion")


def route(serve):
    return next(name for name, config in serve.live.items() if config["route_prefix"] == "/models/m")


def ends(state):
    with state.reading() as connection:
        return [(item.version, item.status) for item in rollouts(connection, "m")]


def actions(state):
    return [event.action for event in state.events("m")][::-1][4:]  # after the deploys and the rollout's start


def shares(state):
    return {item.version: item.weight for item in state.deployments("m") if item.weight}


BACK = "m version 1 is champion at http://127.0.0.1:21050/models/m/predict, version 2 kept warm"


def test_a_rollback_while_the_alias_of_a_promotion_follows_gives_the_route_back(state, serve, reports, url):
    """The version has the route by then, so that no share is left to be taken away."""
    second = once(lambda: roll_back_elsewhere(url, serve))
    Controller(state, serve, reports=reports, follow=lambda _name: second).step(LATER)
    assert deployment_text(second.results[0]) == BACK
    assert (champion(state), route(serve), shares(state)) == (1, "m--v1", {})
    assert ends(state) == [(2, "promoted")]
    assert actions(state) == ["rollout.promote", "rollback"]
    assert state.events("m")[0].why == "from version 2 to version 1"


def test_a_rollback_that_waits_for_a_promotion_gives_the_route_back(state, serve, reports, url):
    """It saw a rollout that runs, and has the lock once the version has the route."""
    results = []
    thread = threading.Thread(target=lambda: results.append(roll_back_elsewhere(url, serve)))
    with told_of_waiting() as waits:

        def promoting():
            serve.on_put = None
            thread.start()
            assert waits.wait(30)

        serve.on_put = promoting
        Controller(state, serve, reports=reports).step(LATER)
        thread.join(30)
    assert deployment_text(results[0]) == BACK
    assert (champion(state), route(serve), shares(state)) == (1, "m--v1", {})
    assert ends(state) == [(2, "promoted")]
    assert actions(state) == ["rollout.promote", "rollback"]


def test_a_rollback_before_a_promotion_takes_the_share_away(state, serve, reports, url):
    """The controller has decided, and looks at Serve: what it decided on is over when it has the lock."""
    steering = Controller(state, serve, reports=reports)
    serve.on_get = second = once(lambda: roll_back_elsewhere(url, serve))
    steering.step(LATER)
    assert deployment_text(second.results[0]) == "m version 2 answers nothing any more; version 1 has all requests"
    assert (champion(state), route(serve), shares(state)) == (1, "m--v1", {})
    assert ends(state) == [(2, "stopped")]
    assert actions(state) == ["rollback.canary"]


def test_an_abort_during_a_promotion_aborts_nothing(state, serve, reports, url):
    """As ``deploy --abort`` asks for it, which then brings its own version up."""

    def aborting():
        with State.open(url) as other:
            return abort(other, serve, "m", serve=SPEC.serve, why="", now=LATER, action="abort")

    second = once(aborting)
    Controller(state, serve, reports=reports, follow=lambda _name: second).step(LATER)
    assert second.results == [None]
    assert (champion(state), route(serve), ends(state)) == (2, "m--v2", [(2, "promoted")])
    assert actions(state) == ["rollout.promote"]


def test_a_second_rollback_at_once_takes_no_champion(state, serve, url):
    """Two people press it for one canary: who is second finds its share gone, and the champion stays."""
    for version in (3, 1, 2):
        put(state, serve, version, champion=version != 2)
    begin(state, serve)
    first = once(lambda: roll_back_elsewhere(url, serve))
    with Interrupted.open(url) as other:
        other.after_reading = first
        record = roll_back(SPEC, other, serve)
    assert [deployment_text(one) for one in (first.results[0], record)] == [
        "m version 2 answers nothing any more; version 1 has all requests",
        "m version 2 answers nothing, as before; version 1 has all requests",
    ]
    assert (champion(state), route(serve), ends(state)) == (1, "m--v1", [(2, "stopped")])
    assert [event.action for event in state.events("m")].count("rollback.canary") == 1


def test_a_rollout_that_begins_while_another_is_settled_goes_on(state, serve, url):
    """What is desired and which rollout runs are one reading: the new canary's share is not taken for a lost one."""
    for version in (1, 2):
        put(state, serve, version, champion=version == 1)
    with Interrupted.open(url) as other:
        other.after_reading = once(lambda: begin(state, serve))
        assert settle(other, "m", now=LATER) is None
        assert len(other.after_reading.results) == 1
    assert (ends(state), shares(state)) == ([(2, "running")], {2: 0.1})


def test_a_promotion_that_is_taken_back_while_it_is_settled_is_none(state, serve, url):
    """The version had the route for a moment, and did not come up with it: its rollout runs as before."""
    for version in (1, 2):
        put(state, serve, version, champion=version == 1)
    begin(state, serve)
    before = state.deployments("m")
    state.put_deployments({"m": with_champion(before, before[1])}, action="promote", why="")
    with Interrupted.open(url) as other:
        other.after_reading = once(
            lambda: state.put_deployments({"m": before}, action="promote.undone", why="it did not come up")
        )
        assert settle(other, "m", now=LATER) is None
    assert (ends(state), shares(state)) == ([(2, "running")], {2: 0.1})


def test_a_promotion_by_hand_that_was_killed_can_be_rolled_back(state, serve, url):
    """The verb made the version champion, and did not end its rollout any more."""
    for version in (1, 2):
        put(state, serve, version, champion=version == 1)
    begin(state, serve)
    put(state, serve, 2, champion=True)
    assert deployment_text(roll_back_elsewhere(url, serve)) == BACK
    assert (champion(state), route(serve), ends(state)) == (1, "m--v1", [(2, "promoted")])
    assert actions(state) == ["deploy", "rollout.end", "rollback"]


@pytest.fixture(params=[False, True], ids=["comes up", "falls"])
def kills(request, state, serve, reports, url):
    """Return what a kill leaves at each point of a promotion where the state was written and Serve not told yet."""
    found = []
    serve.on_put = lambda: found.append(killed_here(url, serve, number=len(found)))
    serve.falls = request.param
    Controller(state, serve, reports=reports).step(LATER)
    assert champion(state) == (1 if request.param else 2)
    assert len(found) == (3 if request.param else 1)
    return found


def test_a_promotion_that_is_killed_anywhere_is_completed_by_the_next_controller(kills):
    """The route is where the state says, and a rollout runs where its version has a share."""
    for url, serve in kills:
        with State.open(url) as state:
            Controller(state, serve, reports=Reports()).step(LATER)
            assert route(serve) == f"m--v{champion(state)}"
            running_now = [version for version, status in ends(state) if status == "running"]
            assert running_now == list(shares(state))


def test_a_promotion_that_is_killed_anywhere_can_be_rolled_back(kills):
    """The version has neither the route nor a share, and no rollout gives it one; after its abort it never has."""
    for url, serve in kills[:2]:
        roll_back_elsewhere(url, serve)
        with State.open(url) as state:
            assert (champion(state), route(serve), shares(state)) == (1, "m--v1", {})
            assert [status for _, status in ends(state) if status == "running"] == []
