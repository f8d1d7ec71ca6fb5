"""A verb or a controller that is killed before or after any config that it sends: what runs on completes it.

A real state database, Serve's API in memory. The controller has been running all the time, and got no command.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product

import pytest
from canaries import beside, share, take_back
from fake_serve import FakeServe
from spread import places
from states import SERVE, deploy, take_down

from raymlops.config.serve import RolloutSection
from raymlops.lifecycle.live.change import change
from raymlops.lifecycle.live.withdrawals import version_removed
from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.lifecycle.rollout.controller import Controller
from raymlops.lifecycle.rollout.evidence import Reports, epoch_of
from raymlops.state.rollouts import rollouts, running

DASHBOARD = "http://dashboard:8265"  # where no proxy is asked whether it answers
GOOD = {"requests": 4000, "errors": 0, "slow": 0, "late": 0, "seconds_sum": 1.0}
ONCE = TrafficRequest(weight=0.1, rollout=RolloutSection(steps=(10.0,), bake_s=0.0))


class Killed(BaseException):
    """What ends a process between two lines, as far as a test can have it."""


class Falling(FakeServe):
    """Serve whose caller is killed at a config: before Serve has it, or after."""

    kill_at, taken = 0, False

    def put(self, config):
        last = len(self.sent) == self.kill_at
        if last and not self.taken:
            raise Killed
        super().put(config)
        if last:
            raise Killed


class Mlflow:
    """The alias of ``m``."""

    named = None

    def owned_by(self, _name, _version):
        """Nobody else."""

    def champion(self, _name):
        return self.named

    def set_champion(self, _name, version):
        self.named = version

    def withdraw(self, _name, _versions):
        """Take it."""


@pytest.fixture
def serve(state):
    """Return Serve with version 1 live after 0, both warm, and 2 beside them."""
    serve = FakeServe(dashboard_url=DASHBOARD, cpus=8.0)
    for version in (0, 1):
        deploy(state, serve, version=version)
    beside(state, serve, 2)
    return serve


def remove_version(state, serve):
    def decide(model, _plan):
        return version_removed(model, 2, why="a test")

    change(state, serve, "m", decide=decide, serve=SERVE, action="remove.version", champion=False)


def promoted_by_rollout(state, serve):
    """Let a controller promote version 2, and be killed."""
    with state.reading() as connection:
        (rollout,) = running(connection, "m")
    reports = Reports()
    reports.take("m", "a", 1, {epoch_of(rollout): {"2": GOOD, "champion": GOOD}})
    Controller(state, serve, serve=SERVE, reports=reports).step(datetime.now(UTC))


VERBS = {
    "deploy of what is up": (lambda state, serve: deploy(state, serve, version=2), 2),
    "deploy of what is not": (lambda state, serve: deploy(state, serve, version=3), 3),
    "rollback": (take_back, 0),
    "removal": (take_down, None),
    "removal of a version": (remove_version, 1),
    "canary": (lambda state, serve: share(state, serve, 3, TrafficRequest(weight=0.1)), 1),
    "rollout": (promoted_by_rollout, 2),
}


@pytest.mark.parametrize(("taken", "kill_at", "verb"), places(product([False, True], [0, 1], VERBS)))
def test_what_a_killed_verb_wrote_is_completed_by_the_running_controller(state, serve, verb, kill_at, taken):
    """Route, applications, shares and alias are those of the state, which is what the verb was to bring about."""
    act, champion = VERBS[verb]
    if verb == "rollout":
        share(state, serve, 2, ONCE, now=datetime.now(UTC))
    mlflow, seconds = Mlflow(), [0.0]
    running_one = Controller(state, serve, serve=SERVE, reports=Reports(), aliases=mlflow, clock=lambda: seconds[0])
    running_one.step(datetime.now(UTC))
    falling = Falling(dashboard_url=DASHBOARD, live=serve.live, versions=serve.versions, cpus=serve.cpus)
    falling.kill_at, falling.taken = kill_at, taken
    try:
        act(state, falling)
    except Killed:
        pass
    else:
        assert kill_at > 0  # it sends no second one
    serve.live = falling.live
    for _ in range(2):
        seconds[0] += 30.0
        running_one.step(datetime.now(UTC))
    routes = {config["route_prefix"]: name for name, config in serve.live.items()}
    assert routes.get("/models/m") == (None if champion is None else f"m--v{champion}")
    assert set(serve.live) - {"raymlops"} == {f"m--v{item.version}" for item in state.deployments()}
    assert next((item.version for item in state.deployments() if item.role == "champion"), None) == champion
    assert mlflow.named == (1 if champion is None else champion)
    assert state.model("m").coming == ()
    with state.reading() as connection:
        assert [one.status for one in rollouts(connection, "m")] == ["promoted"] * (verb == "rollout")
