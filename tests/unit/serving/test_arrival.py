"""Ages of requests by clocks that agree about nothing but the length of a second."""

from __future__ import annotations

from raymlops.serving.arrival import WINDOW_S, Ages, stamp


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_a_request_of_this_machine_has_its_age():
    """One clock for all processes of a machine."""
    clock = Clock()
    ages = Ages(machine="here", clock=clock)
    assert ages.age_s(("here", 970.0)) == 30.0
    assert ages.age_s(("here", 1000.5)) == 0.0
    assert ages.age_s(None) == 0.0


def test_this_moment_has_no_age():
    """The stamp and the age use the same clock."""
    assert 0.0 <= Ages().age_s(stamp()) < 60.0


def test_another_machines_clock_may_say_anything():
    """Its fastest request counts as new: the clock is 5,000 s ahead, and the third request took 40 s longer."""
    clock = Clock()
    ages = Ages(machine="here", clock=clock)
    assert ages.age_s(("there", 6000.0)) == 0.0
    assert ages.age_s(("there", 6000.5)) == 0.0
    clock.now = 1045.0
    assert ages.age_s(("there", 6005.5)) == 40.0
    assert ages.age_s(("elsewhere", 3.0)) == 0.0


def test_a_drift_is_forgotten_and_a_long_hang_is_not():
    """10 s in 100 windows of traffic are no age; a request from before two windows of silence is as old as it is."""
    clock = Clock()
    ages = Ages(machine="here", clock=clock)
    for window in range(100):
        clock.now = 1000.0 + window * WINDOW_S
        assert ages.age_s(("there", clock.now - 0.1 * window)) <= 0.31
    sent = clock.now
    clock.now += 2 * WINDOW_S
    assert ages.age_s(("there", sent - 9.9)) >= 2 * WINDOW_S - 0.31
