"""A freeze holds whatever the loop has begun, at whichever point it is, and nothing that a person began."""

from __future__ import annotations

from canaries import beside, share
from loop_world import MINUTE, SERVE, START

from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.state.loop import Freeze, freeze, thaw
from raymlops.state.store import State


def frozen(world):
    """Freeze the loop, and let a quarter of an hour pass."""
    freeze(world.state, Freeze("m", "holidays", "ada", world.now))
    for _ in range(15):
        world.look()
        world.now += MINUTE


def thawed(world):
    """End the freeze."""
    thaw(world.state, "m", now=world.now, actor="ada", why="over")


def coming_up(world, action):
    """Go on until version 2 comes up for an action of the loop, and is held there."""
    for _ in range(40):
        if world.line_up().get(2, ("", 0.0))[1] or action != "rollout.promote":
            world.serve.slow = {"m--v2"}
        world.look()
        if [(one.version, one.action) for one in world.state.model("m").coming] == [(2, action)]:
            return
        world.work()
        world.now += MINUTE
    raise AssertionError(world.newest())


def test_a_freeze_holds_what_was_begun_where_it_is(world):
    """The job of its training ends; the gate's is begun once the freeze is over."""
    world.begin()
    world.run(until=lambda one: one.stage == "training")
    with State.open(world.url) as state:
        freeze(state, Freeze("m", "holidays", "ada", START))
    world.run(until=lambda one: one.note.startswith("m is frozen"))
    assert world.newest().stage == "gating"
    for _ in range(3):
        world.look()
    assert [task for task, _ in world.jobs.tasks.values()] == ["train"]
    with State.open(world.url) as state:
        thaw(state, "m", now=START, actor="ada", why="over")
    assert world.run().stage == "done"


def test_a_freeze_holds_a_rollout_that_the_loop_began(world):
    """It keeps its share, however good it is; a person's rollout would go on."""
    world.begin()
    world.run(until=lambda one: one.note.endswith("of version 2 runs"))
    with State.open(world.url) as state:
        freeze(state, Freeze("m", "holidays", "ada", START))
    for _ in range(5):
        world.now += 2 * (world.now - START)
        world.look()
    assert world.line_up() == {1: ("champion", 0), 2: ("warm", 0.1)}


def test_a_freeze_holds_a_promotion_that_is_under_way(world):
    """Version 2 comes up to its size for the route: it keeps its share, and gets the route once that is thawed."""
    world.begin()
    coming_up(world, "rollout.promote")
    world.serve.slow = set()
    frozen(world)
    assert world.line_up() == {1: ("champion", 0), 2: ("warm", 0.1)}
    assert world.state.model("m").rollout.reason.startswith("held, although step 1 of 2")
    thawed(world)
    assert world.run().stage == "done"


def test_a_freeze_holds_a_version_that_comes_up_for_its_first_share(world):
    """It is up, without any of the traffic; its rollout begins once that is thawed."""
    world.begin()
    coming_up(world, "rollout.start")
    world.serve.slow = set()
    frozen(world)
    assert (world.line_up()[2], world.newest().note[:11]) == (("warm", 0), "m is frozen")
    thawed(world)
    assert world.run().stage == "done"


def test_a_freeze_between_a_decision_and_its_change_holds_it(world):
    """Whether a rollout may go on is read first, and again where it is written."""
    world.begin()
    world.run(until=lambda one: one.note.endswith("of version 2 runs"))
    loop = world.controller._retrainings

    def held(_rollout, now):
        freeze(world.state, Freeze("m", "holidays", "ada", now))
        return ""

    loop.held = held
    world.now += 5 * MINUTE
    world.look()
    assert world.line_up()[2] == ("warm", 0.1)
    assert not world.state.model("m").coming


def test_a_freeze_holds_no_rollout_that_a_person_began(world):
    """Of the loop's own version, which passed its gate and is replayed still."""
    world.begin()
    world.run(until=lambda one: one.stage == "replaying")
    by_hand = TrafficRequest(weight=0.1, rollout=SERVE.rollout)
    with State.open(world.url) as state:
        beside(state, world.serve, 2, section=SERVE)
        share(state, world.serve, 2, by_hand, now=world.now)
    frozen(world)
    assert world.line_up()[2][0] == "champion"
