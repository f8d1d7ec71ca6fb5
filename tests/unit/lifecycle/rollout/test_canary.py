"""What a share of the traffic is asked for with, and who is refused one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fake_serve import FakeServe

from raymlops.config.serve import RolloutSection, ServeSection
from raymlops.errors import DeployError, RefusedError, UsageError
from raymlops.lifecycle.live.change import change
from raymlops.lifecycle.live.lineup import LineUp, beside, with_champion
from raymlops.lifecycle.rollout.canary import TrafficRequest, abort, requested_traffic, settle, share, untouched
from raymlops.records import BundleRef
from raymlops.serving.control.apply import apply
from raymlops.state.rollouts import rollouts
from raymlops.state.store import Deployment, State

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SERVE = ServeSection(ready_timeout_s=1)
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
    ],
)
def test_percentages_that_cannot_be_are_refused(options, message):
    """With what was got."""
    with pytest.raises(UsageError, match=message):
        ask(**options)


@pytest.fixture
def state(tmp_path):
    with State.open(f"sqlite:///{tmp_path}/state.db") as opened:
        yield opened


@pytest.fixture
def serve(state):
    """Return Serve with version 1 live and 2 and 3 beside it."""
    serve = FakeServe(dashboard_url="http://dashboard:8265")
    for version in (1, 2, 3):
        new = Deployment("m", version, BundleRef("/bundles", "d" * 64), "run", "warm")

        def decide(before, new=new):
            wanted = with_champion(before, new) if new.version == 1 else beside(before, new)
            return LineUp(wanted, new.version)

        change(state, serve, "m", decide=decide, serve=SERVE, action="deploy", why="")
    return serve


def give(state, serve, version, asked, *, champion=1):
    options = {"version": version, "champion": champion, "asked": asked, "serve": SERVE, "why": "", "now": NOW}
    return share(state, serve, "m", **options)


def shares(state):
    return {item.version: (item.weight, item.shadow) for item in state.deployments("m")}


def test_a_share_and_its_rollout_are_one_event(state, serve):
    """The record names the rollout, which is in the database with the share."""
    record = give(state, serve, 2, ROLLOUT)
    with state.reading() as connection:
        (rollout,) = rollouts(connection, "m")
    assert (record.version, record.previous_version, record.weight) == (2, 1, 0.1)
    assert (record.rollout_id, rollout.status, rollout.weight, rollout.champion) == (rollout.id, "running", 0.1, 1)
    assert state.events()[0].action == "rollout.start"


def test_the_record_says_how_much(state, serve):
    """What a version was given, and what it had when that was taken away."""
    give(state, serve, 3, TrafficRequest(shadow=0.5))
    assert state.events()[0].why == "copies of 50%"
    record = give(state, serve, 2, replace(ROLLOUT, shadow=1.0))
    assert state.events()[0].why == "answers 10%, copies of 100%, steps 10, 50, 100%"
    abort(state, serve, "m", serve=SERVE, why="rolled back", now=NOW, action="rollback.canary")
    assert state.events()[0].why == (
        f"rolled back: version 2 answered 10%, rollout {record.rollout_id} of version 2 ends"
    )


@pytest.mark.parametrize(
    ("version", "action", "end"),
    [
        (2, "promote", "promoted: version 2 was made champion by promote"),
        (3, "promote", "stopped: version 1, with which it was compared, is no longer champion"),
        (2, "rollout.promote", None),
    ],
)
def test_the_end_of_a_rollout_by_another_change_is_an_event(state, serve, version, action, end):
    """With what it ended as and why; where it promoted its version itself, that event has said it."""
    record = give(state, serve, 2, ROLLOUT)
    wanted = with_champion(state.deployments("m"), state.deployments("m")[version - 1])
    state.put_deployments({"m": wanted}, action=action, why="")
    ended = settle(state, "m", now=NOW)
    assert settle(state, "m", now=NOW) is None
    event = state.events()[0]
    if end is None:
        assert (event.action, ended.status) == (action, "promoted")
    else:
        assert (event.action, event.subject) == ("rollout.end", "m/2")
        assert event.why == f"rollout {record.rollout_id} {end}"


def test_while_a_rollout_runs_nobody_else_moves_traffic(state, serve):
    """Neither a second rollout nor a share by hand, of any version; a shadow disturbs it not."""
    first = give(state, serve, 2, ROLLOUT)
    for version, asked in ((3, ROLLOUT), (3, TrafficRequest(weight=0.2)), (2, TrafficRequest(weight=0.0))):
        with pytest.raises(RefusedError, match=f"being rolled out: {first.rollout_id}"):
            give(state, serve, version, asked)
    give(state, serve, 3, TrafficRequest(shadow=1.0))
    assert shares(state) == {1: (0, 0), 2: (0.1, 0), 3: (0, 1.0)}


def test_a_rollout_compares_two_versions(state, serve):
    """With a third one's share in the traffic the weights would not be what they say."""
    give(state, serve, 3, TrafficRequest(weight=0.2))
    with pytest.raises(RefusedError, match="version 3 of m has a share"):
        give(state, serve, 2, ROLLOUT)
    assert abort(state, serve, "m", serve=SERVE, why="", now=NOW, action="rollback.canary").version == 3
    assert give(state, serve, 2, ROLLOUT).weight == 0.1


def test_what_changed_since_it_was_looked_at_is_refused(state, serve):
    """Another champion than the one that the signature was compared with."""
    with pytest.raises(RefusedError, match="version 9 of m is no longer live"):
        give(state, serve, 2, ROLLOUT, champion=9)


def test_a_share_that_serve_does_not_take_is_taken_back(state, serve):
    """The champion is unhealthy: its replicas may not know of the canary. The rollout has ended, nothing is shared."""
    serve.unhealthy = {"m--v1"}
    with pytest.raises(DeployError, match="m--v1 is UNHEALTHY"):
        give(state, serve, 2, ROLLOUT)
    with state.reading() as connection:
        assert rollouts(connection, "m")[0].status == "stopped"
    assert shares(state)[2] == (0, 0)


def test_what_is_not_up_has_nothing_to_be_taken_away(state, serve):
    """Version 9 stays where it is; 2 is up."""
    assert TrafficRequest(weight=0.0).removes
    assert TrafficRequest(weight=0.0, shadow=0.0).removes
    assert not TrafficRequest(weight=0.0, shadow=0.1).removes
    assert not TrafficRequest().removes
    record = untouched(state.deployments("m"), "m", 9, digest="d")
    assert (record.version, record.weight, record.changed, record.previous_version) == (9, 0.0, False, 1)
    assert untouched(state.deployments("m"), "m", 2, digest="d") is None


def test_a_broken_version_loses_its_share(state, serve):
    """By hand as by a rollback: nobody waits for it."""
    give(state, serve, 2, TrafficRequest(weight=0.1, shadow=0.5))
    serve.unhealthy = {"m--v2"}
    assert give(state, serve, 2, TrafficRequest(weight=0.0, shadow=0.0)).weight == 0.0
    assert shares(state)[2] == (0, 0)


def test_a_version_that_sleeps_is_woken_before_it_gets_a_share(state, serve):
    """Version 4 went to no replicas: the config that shares traffic comes after one that wakes it."""
    new = Deployment("m", 4, BundleRef("/bundles", "d" * 64), "run", "warm", {"min_replicas": 0})
    state.put_deployments({"m": [*state.deployments("m"), new]}, action="deploy.beside", why="")
    apply(state.desired(), api=serve, wait_s=1)
    del serve.live["m--v4"]["deployments"][0]["autoscaling_config"]["initial_replicas"]
    sent = len(serve.sent)
    give(state, serve, 4, TrafficRequest(weight=0.1))

    def least(index):
        (found,) = (item for item in serve.sent[index]["applications"] if item["name"] == "m--v4")
        return found["deployments"][0]["autoscaling_config"]["min_replicas"]

    def canaries(index):
        (found,) = (item for item in serve.sent[index]["applications"] if item["name"] == "m--v1")
        return found["deployments"][0]["user_config"]["traffic"]["canaries"]

    assert [(least(index), len(canaries(index))) for index in range(sent, len(serve.sent))] == [(1, 0), (1, 1)]


def test_a_canary_is_aborted_whatever_becomes_of_serve(state, serve):
    """The champion hangs and the canary is broken: nobody is asked, and it stays desired."""
    give(state, serve, 2, ROLLOUT)
    serve.unhealthy = {"m--v1", "m--v2"}
    assert abort(state, serve, "m", serve=SERVE, why="", now=NOW, action="rollback.canary").version == 2
    assert shares(state)[2] == (0, 0)
