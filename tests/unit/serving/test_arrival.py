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


def test_a_clock_that_stood_still_is_forgotten_after_some_seconds():
    """A suspend of 60 s: for 10 s all requests are late by it, then the fastest of them counts as new."""
    clock = Clock()
    ages = Ages(machine="here", clock=clock)
    assert ages.age_s(("there", 500.0)) == 0.0
    for later, late, expected in ((0, 2, 62), (5, 0, 60), (10, 3, 63), (11, 1, 1), (12, 0, 0), (13, 4, 4)):
        clock.now = 1060.0 + later
        assert ages.age_s(("there", 500.0 + later - late)) == expected


def test_a_slow_phase_is_no_other_clock():
    """Of all requests of 20 s one in ten seconds is on time: the others are as late as they are."""
    clock = Clock()
    ages = Ages(machine="here", clock=clock)
    for second in range(20):
        clock.now = 1000.0 + second
        late = 5.0 if second % 10 else 0.5
        assert ages.age_s(("there", clock.now - late)) == (4.5 if late == 5.0 else 0.0)


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
