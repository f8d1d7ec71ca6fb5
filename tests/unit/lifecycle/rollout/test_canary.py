"""What a share of the traffic is asked for with, and who is refused one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from canaries import beside, share, take_back
from fake_serve import FakeServe
from states import deploy
from stored import put

from raymlops.config.serve import RolloutSection
from raymlops.errors import DeployError, RefusedError, UsageError
from raymlops.lifecycle.rollout.canary import TrafficRequest, requested_traffic
from raymlops.state.rollouts import rollouts

SETTINGS = RolloutSection(steps=(10.0, 50.0, 100.0))
ROLLOUT = TrafficRequest(weight=0.1, rollout=SETTINGS)


def ask(canary=None, *, steps=None, bake_s=None, shadow=None):
    return requested_traffic(canary=canary, steps=steps, bake_s=bake_s, shadow=shadow, settings=SETTINGS)


def test_a_canary_alone_is_held():
    """A share and no rollout; nothing asked for is nothing."""
    assert ask(10) == TrafficRequest(weight=0.1)
    assert ask(0, shadow=100) == TrafficRequest(weight=0.0, shadow=1.0)
    assert not ask().changes


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        (ask(steps=[10, 50, 100]), (10, 50, 100)),
        (ask(10, steps=[10, 50, 100]), (10, 50, 100)),
        (ask(5, steps=[10, 50, 100]), (5, 10, 50, 100)),
        (ask(bake_s=60), (10, 50, 100)),
        (ask(20, bake_s=60), (20, 50, 100)),
        (ask(100, bake_s=60), (100,)),
    ],
)
def test_steps_or_a_bake_make_a_rollout(asked, steps):
    """It begins with the canary's share; the configuration's steps stand in for those that were not given."""
    assert asked.rollout is not None
    assert asked.rollout.steps == steps
    assert asked.weight == steps[0] / 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canary": 101}, "canary is a percentage"),
        ({"canary": float("nan")}, "canary is a percentage"),
        ({"shadow": -1}, "shadow is a percentage"),
        ({"canary": 30, "steps": [10, 50]}, "cannot be followed"),
        ({"steps": [50, 10]}, "must rise"),
        ({"steps": []}, "must rise"),
        ({"canary": 10, "bake_s": -1}, "no such rollout"),
        ({"canary": 10, "bake_s": 1e12}, "no such rollout"),
    ],
)
def test_percentages_that_cannot_be_are_refused(options, message):
    """With what was got."""
    with pytest.raises(UsageError, match=message):
        ask(**options)


@pytest.fixture
def serve(state):
    """Return Serve with version 1 live and 2 and 3 beside it."""
    serve = FakeServe(dashboard_url="http://dashboard:8265", cpus=8.0)
    deploy(state, serve)
    for version in (2, 3):
        beside(state, serve, version)
    return serve


def shares(state):
    return {item.version: (item.weight, item.shadow) for item in state.deployments("m")}


def newest(state):
    with state.reading() as connection:
        return rollouts(connection, "m")[0]


def test_a_share_and_its_rollout_are_one_event(state, serve):
    """The record names the rollout, which is in the database with the share."""
    record, rollout = share(state, serve, 2, ROLLOUT), newest(state)
    assert (record.version, record.previous_version, record.weight) == (2, 1, 0.1)
    assert (record.rollout_id, rollout.status, rollout.weight, rollout.champion) == (rollout.id, "running", 0.1, 1)
    assert state.events()[0].action == "rollout.start"


def test_the_record_says_how_much(state, serve):
    """What a version was given, and what it had when that was taken away."""
    share(state, serve, 3, TrafficRequest(shadow=0.5))
    assert state.events()[0].why == "copies of 50%"
    record = share(state, serve, 2, replace(ROLLOUT, shadow=1.0))
    assert state.events()[0].why == "answers 10%, copies of 100%, steps 10, 50, 100%"
    take_back(state, serve)
    assert state.events()[0].why == (
        f"rolled back: version 2 answered 10%, rollout {record.rollout_id} of version 2 ends"
    )


def test_while_a_rollout_runs_nobody_else_moves_traffic(state, serve):
    """Neither a second rollout nor a share by hand, of any version; a shadow disturbs it not."""
    first = share(state, serve, 2, ROLLOUT)
    for version, asked in ((3, ROLLOUT), (3, TrafficRequest(weight=0.2)), (2, TrafficRequest(weight=0.0))):
        with pytest.raises(RefusedError, match=f"being rolled out: {first.rollout_id}"):
            share(state, serve, version, asked)
    share(state, serve, 3, TrafficRequest(shadow=1.0))
    assert shares(state) == {1: (0, 0), 2: (0.1, 0), 3: (0, 1.0)}


def test_a_rollout_compares_two_versions(state, serve):
    """With a third one's share in the traffic the weights would not be what they say."""
    share(state, serve, 3, TrafficRequest(weight=0.2))
    with pytest.raises(RefusedError, match="version 3 of m has a share"):
        share(state, serve, 2, ROLLOUT)
    assert take_back(state, serve).version == 3
    assert share(state, serve, 2, ROLLOUT).weight == 0.1


def test_what_changed_since_it_was_looked_at_is_refused(state, serve):
    """Another champion than the one that the signature was compared with."""
    with pytest.raises(RefusedError, match="version 9 of m is no longer live"):
        share(state, serve, 2, ROLLOUT, champion=9)


def test_a_share_that_is_refused_once_its_version_is_up_leaves_nothing(state, serve):
    """Another version became champion while it came up: it goes again, and the reason is said."""
    roles = {1: "warm", 2: "champion"}

    class Promoting(FakeServe):
        def put(self, config):
            super().put(config)
            if self.slow and "m--v4" in self.live:
                self.slow = set()
                items = state.deployments("m")
                put(state, "m", [replace(item, role=roles.get(item.version, "warm")) for item in items])

    serve = Promoting(dashboard_url=serve.dashboard_url, live=serve.live, slow={"m--v4"})
    with pytest.raises(DeployError, match="version 1 of m is no longer live"):
        share(state, serve, 4, TrafficRequest(weight=0.1))
    assert set(shares(state)) == {1, 2, 3}
    assert state.events()[0].action == "deploy.beside.undone"


def test_a_share_that_serve_does_not_take_yet_stays_desired(state, serve):
    """The champion is unhealthy: its replicas may not know of the canary, which is said; the controller goes on."""
    serve.unhealthy = {"m--v1"}
    with pytest.raises(DeployError, match="m--v1 is UNHEALTHY") as caught:
        share(state, serve, 2, ROLLOUT)
    assert "the controller continues with it" in caught.value.hint
    assert (newest(state).status, shares(state)[2]) == ("running", (0.1, 0))


def test_what_is_not_up_has_nothing_to_be_taken_away(state, serve):
    """Version 9 stays where it is, and so does all that is desired."""
    assert TrafficRequest(weight=0.0).removes
    assert TrafficRequest(weight=0.0, shadow=0.0).removes
    assert not TrafficRequest(weight=0.0, shadow=0.1).removes
    assert not TrafficRequest().removes
    events = len(state.events())
    record = share(state, serve, 9, TrafficRequest(weight=0.0))
    assert (record.version, record.weight, record.changed, record.previous_version) == (9, 0.0, False, 1)
    assert len(state.events()) == events


def test_a_broken_version_loses_its_share(state, serve):
    """By hand as by a rollback: nobody waits for it."""
    share(state, serve, 2, TrafficRequest(weight=0.1, shadow=0.5))
    serve.unhealthy = {"m--v2"}
    assert share(state, serve, 2, TrafficRequest(weight=0.0, shadow=0.0)).weight == 0.0
    assert shares(state)[2] == (0, 0)


def test_a_version_that_sleeps_is_woken_before_it_gets_a_share(state, serve):
    """Version 4 went to no replicas: the config that shares traffic comes after one that wakes it."""
    beside(state, serve, 4, min_replicas=0)
    del serve.live["m--v4"]["deployments"][0]["autoscaling_config"]["initial_replicas"]
    sent = len(serve.sent)
    share(state, serve, 4, TrafficRequest(weight=0.1))

    def least(index):
        (found,) = (item for item in serve.sent[index]["applications"] if item["name"] == "m--v4")
        return found["deployments"][0]["autoscaling_config"]["min_replicas"]

    def canaries(index):
        (found,) = (item for item in serve.sent[index]["applications"] if item["name"] == "m--v1")
        return found["deployments"][0]["user_config"]["traffic"]["canaries"]

    assert [(least(index), len(canaries(index))) for index in range(sent, len(serve.sent))] == [(1, 0), (1, 1)]


def test_a_canary_is_aborted_whatever_becomes_of_serve(state, serve):
    """The champion hangs and the canary is broken: its share is gone from what is desired, and from Serve's config."""
    share(state, serve, 2, ROLLOUT)
    serve.unhealthy = {"m--v1", "m--v2"}
    take_back(state, serve)
    assert (newest(state).status, shares(state)[2]) == ("stopped", (0, 0))
    (options,) = serve.live["m--v1"]["deployments"]
    assert options["user_config"]["traffic"]["canaries"] == []
