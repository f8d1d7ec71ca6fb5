"""Fifty drawn histories of what is live, the same in each run; ``tests/soak`` draws a thousand others."""

from __future__ import annotations

import pytest
from live_machine import LiveMachine, draw_histories


def test_whatever_happens_all_agree_once_nothing_moves():
    """The desired state, Serve, the aliases and the audit record."""
    draw_histories(LiveMachine, 50, steps=20, derandomize=True)


def test_a_verb_ends_although_a_process_that_hangs_holds_the_lock():
    """No step can be taken, so that nobody says whether the version came up: the verb waited for ever."""
    machine = LiveMachine()
    machine.world.holder = "a process that was stopped"
    machine.deploy("m", 1, "plain", abort=False, fate={})
    for _ in range(100):
        if machine.callers:
            machine.go(machine.callers[0])
    assert "no step was taken for 25 s: another step is being taken" in machine.world.said[0]
    machine.world.holder = None
    machine.teardown()  # the controller brings it up


@pytest.mark.parametrize("stop", range(4, 10))
def test_settings_that_another_verb_wrote_meanwhile_are_not_taken_as_running(stop):
    """Two verbs ask for settings with which the version does not start; one looked at Serve before the other wrote.

    It saw the version run, with the settings before, took those for the new ones, and ended the other's transition.
    """
    machine = LiveMachine()
    machine.live_already([1], 0, None, controlled=False)
    machine.beside("m", 2, "plain", {})
    machine.beside("m", 2, "broken", {"stop": stop, "loses_lock": True})
    machine.beside("m", 2, "broken", {"kill": 9})
    machine.teardown()
