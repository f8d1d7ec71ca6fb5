"""A freeze, an incident and a lowered autonomy hold what the loop has begun, at whichever point it is.

They hold nothing that a person began.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from canaries import beside, share
from loop_world import BAD, MINUTE, SERVE, START
from stored import put

from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.state.freezes import Freeze, freeze, thaw
from raymlops.state.schema import rollouts
from raymlops.state.store import State
from raymlops.state.watch.incidents import Filed, Incident, change_incident, record_window
from raymlops.state.watch.windows import JudgedWindow


class Frozen:
    """A freeze."""

    note = "m is frozen"

    def on(self, state):
        freeze(state, Freeze("m", "holidays", "ada", START))

    def off(self, state):
        thaw(state, "m", now=START, actor="ada", why="over")


class Broken:
    """An incident of a bound."""

    note = "nothing during an incident"

    def on(self, state):
        window = JudgedWindow("m", "inputs", "quality", 1, START, START + MINUTE, 1, "alarm", "40% nulls", 60, START)
        opened = Incident("i1", "m", "inputs", "quality", 1, START, START, 1, "x (max_nulls)")
        assert record_window(state, window, lambda _known: [Filed(opened)])

    def off(self, state):
        change_incident(state, "i1", lambda known: Filed(replace(known, closed_at=START)), name="m")


class Lowered:
    """An autonomy that is lowered."""

    note = "retrain.autonomy is propose now"

    def on(self, state, autonomy="propose"):
        put(state, "m", [replace(item, retrain={"autonomy": autonomy}) for item in state.deployments("m")])

    def off(self, state):
        self.on(state, "act")


@pytest.fixture(params=[Frozen, Broken, Lowered])
def brake(request):
    return request.param()


def held(world, brake):
    """Hold the loop, and let a quarter of an hour pass."""
    brake.on(world.state)
    for _ in range(15):
        world.look()
        world.now += MINUTE


def coming_up(world, action):
    """Go on until version 2 comes up for an action of the loop."""
    for _ in range(40):
        if world.line_up().get(2, ("", 0.0))[1] or action != "rollout.promote":
            world.serve.slow = {"m--v2"}
        world.look()
        if [(one.version, one.action) for one in world.state.model("m").coming] == [(2, action)]:
            world.serve.slow = set()
            return
        world.work()
        world.now += MINUTE
    raise AssertionError(world.newest())


def test_what_was_begun_is_held_where_it_is(world, brake):
    """The job of its training ends; the gate's is begun once nothing holds it any more."""
    world.begin()
    world.run(until=lambda one: one.stage == "training")
    brake.on(world.state)
    world.run(until=lambda one: one.note.startswith(brake.note))
    assert world.newest().stage == "gating"
    for _ in range(3):
        world.look()
    assert [task for task, _ in world.jobs.tasks.values()] == ["train"]
    brake.off(world.state)
    assert world.run().stage == "done"


def test_a_version_that_comes_up_for_its_first_share_is_held(world, brake):
    """It is up, without any of the traffic, and says why; its rollout begins once nothing holds it."""
    world.begin()
    coming_up(world, "rollout.start")
    held(world, brake)
    assert world.line_up() == {1: ("champion", 0), 2: ("warm", 0)}
    assert world.newest().note.startswith(brake.note)
    brake.off(world.state)
    assert world.run().stage == "done"


@pytest.mark.parametrize("promoted", [False, True], ids=["its rollout runs", "it comes up for the route"])
def test_a_version_that_has_a_share_keeps_it(world, brake, promoted):
    """However good it is; its rollout says why."""
    world.begin()
    coming_up(world, "rollout.promote") if promoted else world.run(until=lambda one: one.note.endswith("2 runs"))
    held(world, brake)
    assert world.line_up() == {1: ("champion", 0), 2: ("warm", 0.1)}
    reason = world.state.model("m").rollout.reason
    assert reason.startswith("held, although step 1 of 2")
    assert brake.note in reason
    brake.off(world.state)
    assert world.run().stage == "done"


def test_a_rollout_of_the_release_before_is_held(world):
    """Its id was its own: the event by which it began names its retraining."""
    world.begin()
    coming_up(world, "rollout.promote")
    with world.state.writing() as connection:
        connection.execute(sa.update(rollouts).values(id="0123456789ab"))
    held(world, Frozen())
    assert world.line_up() == {1: ("champion", 0), 2: ("warm", 0.1)}


def test_what_is_held_is_taken_back_if_it_is_worse(world, brake):
    """A share that is held is watched, and ends as any other."""
    world.begin()
    world.run(until=lambda one: one.note.endswith("2 runs"))
    world.canary = BAD
    held(world, brake)
    assert (world.line_up()[2], world.newest().stage) == (("warm", 0), "taken_back")


def test_a_route_goes_back_whatever_holds_the_loop(world, brake):
    """A bake that is worse ends in a rollback, which nothing holds."""
    world.settings["bake_h"] = 4.0
    world.begin()
    world.run(until=lambda one: one.stage == "baking")
    world.baked = BAD
    held(world, brake)
    assert (world.line_up()[1], world.newest().stage) == (("champion", 0), "taken_back")


def test_what_holds_it_between_a_decision_and_its_change_is_seen(world, brake, monkeypatch):
    """Whether a rollout may go on is read first, and again where it is written."""
    world.begin()
    world.run(until=lambda one: one.note.endswith("2 runs"))
    change, asked = world.state.change, []

    def late(*arguments, **options):
        monkeypatch.setattr(world.state, "change", change)
        asked.append(arguments)
        brake.on(world.state)
        return change(*arguments, **options)

    monkeypatch.setattr(world.state, "change", late)
    world.now += 5 * MINUTE
    world.look()
    assert asked
    assert world.line_up()[2] == ("warm", 0.1)
    assert not world.state.model("m").coming


def test_a_rollout_that_a_person_began_is_not_held(world, brake):
    """Of the loop's own version, which passed its gate and is replayed still."""
    world.begin()
    world.run(until=lambda one: one.stage == "replaying")
    by_hand = TrafficRequest(weight=0.1, rollout=SERVE.rollout)
    with State.open(world.url) as state:
        beside(state, world.serve, 2, section=SERVE)
        share(state, world.serve, 2, by_hand, now=world.now)
    held(world, brake)
    assert world.line_up()[2][0] == "champion"


def test_a_person_rolls_out_what_is_held(world, brake):
    """The version is up without a share, and gets one, and the route, by hand."""
    world.begin()
    coming_up(world, "rollout.start")
    held(world, brake)
    with State.open(world.url) as state:
        share(state, world.serve, 2, TrafficRequest(weight=0.1, rollout=SERVE.rollout), now=world.now)
    for _ in range(15):
        world.look()
        world.now += MINUTE
    assert world.line_up()[2][0] == "champion"
