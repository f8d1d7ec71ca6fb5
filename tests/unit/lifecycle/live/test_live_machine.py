"""Six drawn histories of what is live, the same in each run; ``tests/soak`` draws a thousand others."""

from __future__ import annotations

import pytest
from live_machine import LiveMachine, M, draw_histories
from spread import places


def test_whatever_happens_all_agree_once_nothing_moves():
    """The desired state, Serve, the aliases and the audit record."""
    draw_histories(LiveMachine, 6, steps=20, derandomize=True)


def test_a_verb_ends_although_a_process_that_hangs_holds_the_lock():
    """No step can be taken, so that nobody says whether the version came up: the verb waited for ever."""
    machine = LiveMachine()
    (home,) = machine.world.homes
    home.holder = "a process that was stopped"
    machine.deploy(M, 1, "plain", abort=False, fate={})
    for _ in range(100):
        if machine.world.callers:
            machine.go(machine.world.callers[0])
    assert "no step was taken for 25 s: another step is being taken" in machine.world.said[0]
    home.holder = None
    machine.teardown()  # the controller brings it up


@pytest.mark.parametrize("stop", places(range(4, 10), 3))
def test_settings_that_another_verb_wrote_meanwhile_are_not_taken_as_running(stop):
    """Two verbs ask for settings with which the version does not start; one looked at Serve before the other wrote.

    It saw the version run, with the settings before, took those for the new ones, and ended the other's transition.
    """
    machine = LiveMachine()
    machine.live_already([1])
    machine.beside(M, 2, "plain", {})
    machine.beside(M, 2, "broken", {"stop": stop, "loses_lock": True})
    machine.beside(M, 2, "broken", {"kill": 9})
    machine.teardown()


@pytest.mark.parametrize("stop", places(range(12, 24), 4))
def test_a_config_changes_nothing_that_another_state_changed_meanwhile(stop):
    """Serve takes whole configs, so that one is made of what the other state has by now."""
    machine = LiveMachine()
    machine.live_already([1], states=2)
    other = ("o", 1)
    machine.deploy(other, 1, "plain", abort=False, fate={})
    machine.deploy(M, 2, "plain", abort=False, fate={"stop": stop})
    machine.deploy(other, 2, "plain", abort=False, fate={})
    machine.roll_back(other, {})
    machine.teardown()


def test_what_only_gets_copies_keeps_no_rollback_from_the_route():
    """While version 3 comes up for them the route goes back from version 2 to 1."""
    machine = LiveMachine()
    machine.live_already([1, 2], looks=3)
    machine.share(M, 3, {"shadow": 50.0}, abort=False, fate={})
    machine.roll_back(M, {})
    machine.teardown()


def test_a_canary_of_nothing_ends_one_that_comes_up():
    """It gets no share once it is up."""
    machine = LiveMachine()
    machine.live_already([1], looks=3)
    machine.share(M, 2, {"canary": 10.0}, abort=False, fate={})
    machine.share(M, 2, {"canary": 0.0}, abort=False, fate={})
    machine.teardown()


def test_what_made_room_and_came_back_does_not_stay_for_good():
    """Version 1 leaves for version 5, which does not come up."""
    machine = LiveMachine()
    machine.live_already([1, 2], tight=True)
    machine.deploy(M, 5, "two", abort=False, fate={})
    machine.teardown()


def test_what_had_made_room_for_an_aborted_canary_does_not_stay_for_good():
    """Versions 1 and 3 leave for version 4, which version 5 supersedes, and does not come up."""
    machine = LiveMachine()
    machine.live_already([1, 2], tight=True)
    machine.beside(M, 3, "plain", {})
    machine.rest()
    machine.happens(("starts are slow", 3))
    machine.share(M, 4, {"canary": 10.0}, abort=False, fate={})
    machine.share(M, 5, {"canary": 10.0}, abort=True, fate={})
    machine.teardown()


def test_a_state_moves_to_another_cluster_by_a_takeover_alone():
    """While the controller of the first one runs; afterwards that one moves nothing, and its verbs are refused."""
    machine = LiveMachine()
    machine.live_already([1], clusters=2, controlled=True)
    (home,), (here, there) = machine.world.homes, machine.world.clusters
    elsewhere = {"elsewhere": True}
    machine.deploy(M, 2, "plain", abort=False, fate=elsewhere)
    machine.restore(0, takeover=False, fate=elsewhere)
    assert [home.there, *there.serve.live] == [here.id]
    assert ["live on another cluster" in said for said in machine.world.said] == [True, True]
    machine.restore(0, takeover=True, fate=elsewhere)
    assert home.there == there.id
    machine.deploy(M, 3, "plain", abort=False, fate=elsewhere)  # on the first one, by now
    assert "live on another cluster" in machine.world.said[-1]
    machine.teardown()
    assert here.serve.live.keys() == there.serve.live.keys() == {"m--v1", "raymlops"}


def test_a_champion_runs_where_serve_comes_back_with_room_for_it_alone():
    """The version before it is placed first, and leaves."""
    machine = LiveMachine()
    machine.live_already([1, 2], controlled=True)
    machine.happens(("Serve starts anew with room for", 1.0))
    machine.teardown()
    (cluster,) = machine.world.clusters
    assert cluster.serve.running["m--v2"] == 1


@pytest.mark.parametrize("kill", places(range(1, 40, 2), 6))
def test_a_version_that_replaces_the_champion_comes_up_or_gives_its_place_back(kill):
    """Wherever its verb is killed; version 5 never comes up, and version 2 is restored."""
    machine = LiveMachine()
    machine.live_already([1], looks=1, controlled=True)
    machine.deploy(M, 2, "replace", abort=False, fate={"kill": kill})
    machine.rest()
    machine.deploy(M, 2, "replace", abort=False, fate={})
    machine.rest()
    machine.deploy(M, 5, "replace", abort=False, fate={"kill": kill})
    machine.teardown()
    (cluster,) = machine.world.clusters
    assert cluster.serve.live["m--v2"]["route_prefix"] == "/models/m"
    assert cluster.serve.live.keys() == {"m--v2", "raymlops"}


@pytest.mark.parametrize("ends", ["fails", "is rolled back", "is superseded"])
def test_what_was_deployed_beside_others_comes_back_alone(ends):
    """The first version with ``update: replace`` ends before the old one starts, however it does not get the route."""
    machine = LiveMachine()
    machine.live_already([1], looks=3, controlled=True)
    if ends == "fails":
        machine.deploy(M, 5, "replace", abort=False, fate={})
    else:
        machine.deploy(M, 2, "replace", abort=False, fate={"kill": 12})
        for _ in range(4):
            machine.go(machine.world.callers[0])  # the controller starts it
    if ends == "is rolled back":
        machine.roll_back(M, {})
    elif ends == "is superseded":
        machine.deploy(M, 3, "plain", abort=False, fate={})
    machine.teardown()


def test_a_rollback_replaces_where_a_deploy_did():
    """There is room for one replica alone, all the way."""
    machine = LiveMachine()
    machine.live_already([], looks=1, controlled=True)
    (cluster,) = machine.world.clusters
    cluster.serve.cpus = 1.0
    for version in (1, 2):
        machine.deploy(M, version, "replace", abort=False, fate={})
        machine.rest()
    machine.roll_back(M, {})
    machine.teardown()
    assert cluster.serve.live.keys() == {"m--v1", "raymlops"}
    assert machine.world.said == []
