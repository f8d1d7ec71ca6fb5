"""What replicas count of a version that bakes, whoever of them and of the controllers ends meanwhile."""

from __future__ import annotations

import copy

import pytest
from loop_world import GOOD, MINUTE, World

from raymlops.lifecycle.rollout.evidence import Reports


def counts(requests, errors=0):
    """Return what a replica counted."""
    return {**GOOD, "requests": requests, "errors": errors}


@pytest.fixture
def baking(tmp_path, bundle):
    """Return a world whose new version bakes for four hours; before it 2% of 4,000 failed."""
    world = World(tmp_path, bundle, bake_h=4.0)
    world.canary = world.champion = counts(4000, 80)
    world.replicas = {}
    world.begin()
    world.run(until=lambda one: one.stage == "baking")
    yield world
    world.close()


def hour_of(world, **replicas):
    """Let an hour pass, with what replicas have counted by its end."""
    world.replicas = replicas
    world.now += 61 * MINUTE
    world.look()


def lose(world):
    """Lose the controller with all that it has in memory."""
    world.reports = Reports()
    world.restart()


def test_counts_of_a_replica_that_is_lost_with_the_controller_are_kept(baking):
    """1,000 requests without an error, and then 1,040 of another replica with 2%, as before: nothing is worse."""
    hour_of(baking, b=counts(1000))
    lose(baking)
    hour_of(baking, c=counts(1040, 21))

    one = baking.newest()
    assert (one.stage, one.found.get("baking")) == ("baking", None)
    assert [part["counts"]["requests"] for part in one.found["parts"]] == [1000, 2040]


def test_errors_of_replicas_that_are_lost_with_controllers_count(baking):
    """Each hour both are replaced, after 400 requests of which 13% failed: what no hour shows, all of them do."""
    for hour in range(4):
        hour_of(baking, **{f"replica {hour}": counts(400, 52)})
        lose(baking)
    assert baking.newest().stage == "taken_back"


def test_a_replica_that_counts_anew_keeps_what_it_had(baking):
    """As after a person's rollout in between: 1,000 without an error, then 40 of which one failed."""
    hour_of(baking, b=counts(1000))
    hour_of(baking, b=counts(40, 1))

    one = baking.newest()
    assert (one.stage, one.found["parts"][1]["counts"]["requests"]) == ("baking", 1040)


def test_a_controller_that_was_paused_counts_nothing_twice(baking):
    """It has older reports of the replicas than the one that took over, and looks once more."""
    hour_of(baking, b=counts(950))
    paused = baking.reports
    baking.reports = copy.copy(paused)
    baking.reports._newest, baking.reports._rows = copy.deepcopy((paused._newest, paused._rows))
    baking.restart()
    baking.replicas = {"b": counts(1000)}
    baking.now += MINUTE
    baking.look()
    newer, baking.reports = baking.reports, paused
    baking.replicas = {}
    baking.restart()
    baking.look()
    baking.reports = newer
    baking.replicas = {"b": counts(1010)}
    baking.restart()
    baking.now += MINUTE
    baking.look()

    totals = baking.newest().found["counted"]
    assert {replica: each["requests"] for replica, each in totals.items()} == {"b": 1010}


def test_counts_are_written_without_an_event_each_time(baking):
    """They change with each look."""
    baking.now += MINUTE
    baking.look()
    before = len(baking.state.events("m"))
    for requests in (10, 20, 30):
        baking.replicas = {"b": counts(requests)}
        baking.now += MINUTE
        baking.look()
    assert baking.newest().found["counted"]["b"]["requests"] == 30
    assert len(baking.state.events("m")) == before
