"""A rollback or an abort while a rollout is promoted: afterwards audit, state, Serve and the answer agree.

A real state database, Serve's API in memory. Who is second begins exactly where the first one is, by its own calls.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from canaries import beside, share, take_back
from fake_serve import FakeServe
from spread import places
from states import SERVE, deploy

from raymlops.cli.traffic import deployment_text
from raymlops.config.serve import RolloutSection
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.lifecycle.rollout.controller import Controller
from raymlops.lifecycle.rollout.evidence import Reports, epoch_of
from raymlops.state.rollouts import rollouts, running
from raymlops.state.store import State

GOOD = {"requests": 4000, "errors": 0, "slow": 0, "late": 0, "seconds_sum": 1.0}
ONCE = TrafficRequest(weight=0.1, rollout=RolloutSection(steps=(10.0,), bake_s=0.0))
BACK = "m version 1 is champion at http://127.0.0.1:21050/models/m/predict, version 2 kept warm"
TAKEN = "m version 2 answers nothing any more; version 1 has all requests"
LEFT = "m version 2 answers nothing, as before; version 1 has all requests"


class Stopping(FakeServe):
    """Serve that calls ``on_call`` with the number of the call before it answers, or takes anything."""

    calls = -1

    def on_call(self, number):
        """Do nothing."""

    def put(self, config):
        self._call()
        super().put(config)

    def get(self):
        self._call()
        return super().get()

    def _call(self):
        self.calls += 1
        self.on_call(self.calls)


class Interrupted(State):
    """A state that calls ``after_reading`` once it has read something."""

    after_reading = None

    @contextmanager
    def reading(self):
        with super().reading() as connection:
            yield connection
        if (call := self.after_reading) is not None:
            self.after_reading = None
            call()


@pytest.fixture
def serve():
    return Stopping(dashboard_url="http://dashboard:8265", cpus=8.0)  # where no proxy is asked whether it answers


@pytest.fixture
def controller(state, serve):
    """Return a controller that promotes version 2, at its last step beside the champion 1, at its next round."""
    deploy(state, serve)
    beside(state, serve, 2)
    share(state, serve, 2, ONCE, now=datetime.now(UTC))
    with state.reading() as connection:
        (rollout,) = running(connection, "m")
    reports = Reports()
    reports.take("m", "a", 1, {epoch_of(rollout): {"2": GOOD, "champion": GOOD}})
    return Controller(state, serve, serve=SERVE, reports=reports)


class Elsewhere(threading.Thread):
    """A rollback as another process does it: ``begin`` returns once it is decided, and it goes on beside."""

    def __init__(self, url, serve):
        super().__init__()
        self._url, self._serve, self.record = url, serve, None

    def run(self):
        with State.open(self._url) as state:
            self.record = take_back(state, self._serve)

    def begin(self):
        with State.open(self._url) as state:
            before = state.owner().revision
            self.start()
            deadline = time.monotonic() + 30
            while state.owner().revision == before and time.monotonic() < deadline:
                time.sleep(0.01)


def champion(state):
    return next(item.version for item in state.deployments("m") if item.role == "champion")


def route(serve):
    return next(name for name, config in serve.live.items() if config["route_prefix"] == "/models/m")


def ends(state):
    with state.reading() as connection:
        return [(item.version, item.status) for item in rollouts(connection, "m")]


def actions(state):
    found = [event.action for event in state.events("m")][::-1]
    return found[found.index("rollout.start") + 1 :]


def shares(state):
    return {item.version: item.weight for item in state.deployments("m") if item.weight}


@pytest.mark.parametrize("moment", places(range(8), 4))
def test_a_rollback_at_any_moment_of_a_promotion_takes_version_2_from_traffic(state, serve, controller, url, moment):
    """Before the promotion is decided its share goes, and afterwards the route; whoever of both tells Serve."""
    second, serve.calls = Elsewhere(url, serve), -1

    def rolled_back(number):
        if number == moment:
            serve.on_call = lambda _number: None
            second.begin()

    serve.on_call = rolled_back
    controller.step(datetime.now(UTC))
    second.join(30)
    controller.step(datetime.now(UTC))
    assert (champion(state), route(serve), shares(state)) == (1, "m--v1", {})
    assert (deployment_text(second.record), ends(state), actions(state)) in (
        (TAKEN, [(2, "stopped")], ["rollback.canary"]),
        (BACK, [(2, "promoted")], ["rollout.promote", "rollback"]),
    )


def test_a_rollback_while_a_promotion_waits_for_replicas_takes_the_share_away(state, serve, controller):
    """The version is to have the route, and has no replica at the moment."""
    serve.slow = {"m--v2"}
    controller.step(datetime.now(UTC))
    (coming,) = state.model("m").coming
    assert (coming.version, coming.action, ends(state)) == (2, "rollout.promote", [(2, "running")])
    assert deployment_text(take_back(state, serve)) == TAKEN
    serve.slow = set()
    controller.step(datetime.now(UTC))
    assert (champion(state), route(serve), shares(state)) == (1, "m--v1", {})
    assert ends(state) == [(2, "stopped")]
    assert state.events("m")[0].action == "rollback.canary"


def test_a_second_rollback_at_once_takes_no_champion(state, serve, controller, url):
    """Two people press it for one canary: who is second finds its share gone, and the champion stays."""
    deploy(state, serve, version=3)
    deploy(state, serve)
    share(state, serve, 2, ONCE, now=datetime.now(UTC))
    records = []
    with Interrupted.open(url) as other:
        other.after_reading = lambda: records.append(take_back(state, serve))
        records.append(take_back(other, serve))
    assert [deployment_text(one) for one in records] == [TAKEN, LEFT]
    assert (champion(state), route(serve), ends(state)[0]) == (1, "m--v1", (2, "stopped"))
    assert [event.action for event in state.events("m")].count("rollback.canary") == 1


def test_a_second_rollback_of_the_route_at_once_goes_no_further(state, serve, url):
    """Two people press it for version 3: who is second finds version 2 live, and is told so."""
    for version in (1, 2, 3):
        deploy(state, serve, version=version)
    records = []
    with Interrupted.open(url) as other:
        other.after_reading = lambda: records.append(take_back(state, serve))
        records.append(take_back(other, serve))
    assert [(one.version, one.role, one.changed) for one in records] == [(2, "champion", True), (2, "champion", False)]
    assert (champion(state), route(serve)) == (2, "m--v2")
    assert [event.action for event in state.events("m")].count("rollback") == 1


def test_a_promotion_by_hand_that_was_killed_can_be_rolled_back(state, serve, controller):
    """The verb made the version champion, and told Serve nothing any more."""

    class Killed(BaseException):
        pass

    class Falling(FakeServe):
        def put(self, _config):
            raise Killed

    with pytest.raises(Killed):
        deploy(state, Falling(dashboard_url=serve.dashboard_url, live=serve.live, cpus=8.0), version=2)
    assert (champion(state), route(serve)) == (2, "m--v1")
    assert deployment_text(take_back(state, serve)) == BACK
    assert (champion(state), route(serve), ends(state)) == (1, "m--v1", [(2, "promoted")])
    assert actions(state) == ["deploy", "rollback"]


def test_a_step_on_what_is_no_longer_desired_is_dropped(state, serve, controller, url):
    """Something was changed after Serve was looked at: the config of before is not sent."""
    sent = []

    def changed(_number):
        serve.on_call = lambda _number: None
        with State.open(url) as other:
            other.record(action="key.create", subject="api-key:x")
        sent.append(len(serve.sent))

    serve.live["m--v1"]["deployments"][0]["user_config"]["traffic"]["canaries"] = []
    serve.on_call = changed
    Reconciler(state, serve, serve=SERVE).step(datetime.now(UTC))
    assert sent == [len(serve.sent)]
