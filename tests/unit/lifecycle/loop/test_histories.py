"""Random histories: kills, failures, lost jobs, people who decide otherwise; all of it happens exactly once."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest
from canaries import take_back
from echoed_log import bundle as echo_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loop_world import BAD, DECISION, GOOD, MINUTE, REFUSAL, KilledError, World

from raymlops.errors import NotFoundError, RefusedError, TrackingError
from raymlops.state.freezes import Freeze, freeze, thaw

AWAY = TrackingError("MLflow does not answer")


def decide(world, number):
    with suppress(RefusedError, AttributeError):  # one is open, it is frozen, or nothing is live
        world.begin(f"day {number}")


def roll_back(world, _number):
    with suppress(NotFoundError, RefusedError):
        take_back(world.state, world.serve)


def thawed(world, _number):
    with suppress(RefusedError):
        thaw(world.state, "m", now=world.now, actor="ada", why="over")


def lose_a_job(world, _number):
    for submission_id in [*world.jobs.found][-1:]:
        del world.jobs.found[submission_id]


def goes_bad(world, number):
    world.canary = world.baked = BAD
    world.decision = REFUSAL if number % 2 else DECISION


def goes_well(world, _number):
    world.canary, world.baked, world.decision = GOOD, GOOD, DECISION


def work(world, _number):
    world.work()
    world.now += MINUTE


def look(world, _number, *, at=-1):
    world.killer.at = world.killer.passed + at if at >= 0 else -1
    try:
        world.look()
    except KilledError:
        world.restart()
    world.killer.at = -1


EVENTS = {
    "look": look,
    "work": work,
    "decide": decide,
    "roll back": roll_back,
    "freeze": lambda world, _number: freeze(world.state, Freeze("m", "holidays", "ada", world.now)),
    "thaw": thawed,
    "lose a job": lose_a_job,
    "fail": lambda world, _number: world.jobs.fails.update(train=1, gate=1, replay=1, compare=1),
    "MLflow": lambda world, _number: setattr(world.jobs, "away", AWAY if world.jobs.away is None else None),
    "bad": goes_bad,
    "good": goes_well,
}
OFTEN = ["look", "work", *EVENTS]
HISTORY = st.lists(st.one_of(st.sampled_from(OFTEN), st.integers(0, 30)), max_size=30)
"""A number kills the controller at that place of its next look."""


@pytest.fixture(scope="module")
def began(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("began"), echo_bundle(tmp_path_factory.mktemp("bundle")))
    yield world
    world.close()


@pytest.mark.parametrize("examples", [10, pytest.param(200, marks=pytest.mark.soak)])
def test_whatever_happens_each_is_there_once(examples, began, tmp_path_factory):
    """At most one retraining is open, each has one run and one rollout, and each stage is told and recorded once."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(history=HISTORY)
    def lived(history):
        began.restart()
        world = began.kept(tmp_path_factory.mktemp("history"))
        world.restart()
        try:
            world.begin("day 0")
            for number, what in enumerate(history):
                if isinstance(what, int):
                    look(world, number, at=what)
                else:
                    EVENTS[what](world, number)
                check(world)
            heal(world)
            world.run(most=60)
            check(world)
        finally:
            world.close()

    lived()


def heal(world):
    """Let all that was broken be as it should be."""
    world.jobs.away, world.jobs.fails = None, {}
    goes_well(world, 0)
    thawed(world, 0)


def check(world):
    """Check what must hold at any time."""
    found = world.picture()
    open_ = [one for one in found["retrainings"] if one[1] not in {"done", "stopped", "taken_back", "rejected"}]
    assert len(open_) <= 1
    for _, _, _, _, stages in found["retrainings"]:
        assert max(Counter(stages).values()) == 1, stages
    entries = sum(len(stages) for *_, stages in found["retrainings"])
    assert len(found["moves"]) == entries, "an event a stage"
    told = sum(
        stage in {"baking", "done", "stopped", "taken_back"} for *_, stages in found["retrainings"] for stage in stages
    )
    assert len(found["messages"]) == told, "a message a stage that is told"
    assert max(Counter(version for version, _ in found["rollouts"]).values(), default=0) <= 1
    promoted = [event.subject for event in world.state.events("m") if event.action == "rollout.promote"]
    assert len(promoted) <= len(found["rollouts"])
    assert len(found["runs"]) <= len(found["retrainings"])
