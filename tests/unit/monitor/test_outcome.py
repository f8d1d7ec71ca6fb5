"""What ranks lead to."""

import numpy as np
import pytest

from raymlops.monitor.conformal import Own
from raymlops.monitor.outcome import compare, floors, holm, is_large, kind_numbers

KINDS = kind_numbers(("location", "location", "location", "nulls"))
ROWS = 400


def own(windows, *, seed=1, values=None, phases=None):
    found = np.random.default_rng(seed).standard_normal((windows, 4)) / ROWS**0.5 if values is None else values
    return Own(found, KINDS, floors(KINDS, ROWS), np.zeros(windows, int) if phases is None else phases)


def far(*distances):
    """Return a window with contrasts so many standard deviations off."""
    return np.array(distances) / ROWS**0.5


def test_holm_multiplies_the_smallest_by_all():
    """.01 x 3 = .03, .03 x 2 = .06, and .04 x 1 is not below that."""
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1, 1])


def test_a_window_like_the_others_is_ok():
    """Nothing is flagged."""
    found = compare(own(40), np.stack([far(0, 0, 0, 0), far(0.5, 0, 0, 0)]))
    assert found.outcome == "ok"
    assert not found.flagged.any()


def test_one_window_far_off_is_a_warning():
    """Six standard deviations once, and the one before as ever: .3 of a standard deviation of rows is no unit slip."""
    found = compare(own(40), np.stack([far(0, 0, 0, 0), far(0, 6, 0, 0)]))
    assert found.outcome == "warn"
    assert found.flagged.tolist() == [False, True, False, False]


@pytest.mark.parametrize(("windows", "warned"), [(20, 1), (21, 1), (30, 1), (60, 2), (112, 5)])
def test_warnings_leave_alarms_their_part_of_the_level(windows, warned):
    """Of 61 windows, each judged by the others, 2 are warned of: 3 are 4.9%, and alarms come on top."""
    values = np.random.default_rng(7).standard_normal((windows + 1, 4)) / ROWS**0.5
    found = [compare(own(windows, values=np.delete(values, at, axis=0)), values[at][None]) for at in range(windows + 1)]
    assert sum(one.outcome == "warn" for one in found) == warned
    assert all(one.flagged.any() == (one.outcome == "warn") for one in found)


def test_two_windows_running_are_an_alarm():
    """The same contrast, the same way, twice, with half of what one window would need."""
    found = compare(own(40), np.stack([far(0, 4, 0, 0), far(0, 4.5, 0, 0)]))
    assert found.outcome == "alarm"
    assert found.two.p <= 0.005
    assert found.flagged.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("kind", "spread", "outcome"), [("ends", 1, "alarm"), ("ends", 10, "ok"), ("share", 10, "alarm")]
)
def test_outer_values_of_rows_that_hang_together_come_in_clumps(kind, spread, outcome):
    """A location ten times as far off as that of unrelated rows says that a hundred of them count as one.

    A location that moves from day to day says nothing about a value between others that was never there.
    """
    kinds = kind_numbers(("location", "scale", "skew", kind))
    values = np.random.default_rng(1).standard_normal((40, 4)) / ROWS**0.5 * [spread, 1, 1, 1]
    column = Own(values, kinds, floors(kinds, ROWS), np.zeros(40, int), columns=np.zeros(4, int))
    assert compare(column, np.stack([far(0, 0, 0, 6), far(0, 0, 0, 6.5)])).outcome == outcome


@pytest.mark.parametrize(("windows", "warned"), [(20, 1), (28, 1), (60, 1), (112, 2)])
def test_half_of_a_level_is_a_part_s_of_two(windows, warned):
    """Half as many windows of two parts are warned of, and the highest in any case."""
    values = np.random.default_rng(7).standard_normal((windows + 1, 4)) / ROWS**0.5
    others = [own(windows, values=np.delete(values, at, axis=0)) for at in range(windows + 1)]
    found = [compare(other, values[at][None], share=0.5) for at, other in enumerate(others)]
    assert sum(one.outcome == "warn" for one in found) == warned
    assert all(one.flagged.any() == (one.outcome == "warn") for one in found)


@pytest.mark.parametrize("windows", [20, 28, 60])
def test_a_part_of_few_windows_can_be_an_alarm(windows):
    """The highest of all pairs is one at any share; its rank is told as if all of the level were its."""
    moved = np.stack([far(0, 9, 0, 0), far(0, 9, 0, 0)])
    found = compare(own(windows), moved, share=0.1)
    assert found.outcome == "alarm"
    assert found.flagged.tolist() == [False, True, False, False]
    assert found.ranks[1] == 0.005
    assert compare(own(windows), np.stack([far(0, 0, 0, 0), far(0, 9, 0, 0)]), share=0.1).outcome == "warn"


def test_two_windows_that_move_unlike_are_no_alarm():
    """Up and down in the same contrast, or in two contrasts."""
    for before in (far(0, -4, 0, 0), far(4, 0, 0, 0)):
        assert compare(own(40), np.stack([before, far(0, 4, 0, 0)])).outcome == "warn"


def test_one_window_alone_is_an_alarm_if_nothing_else_explains_it():
    """Half a standard deviation of rows is 10 of windows; a serving baseline has 28 windows at most."""
    found = compare(own(28), far(0, 12, 0, 0)[None])
    assert found.outcome == "alarm"
    assert found.single.tolist() == [False, True, False, False]


def test_one_odd_day_of_a_column_leaves_alarms_to_the_others():
    """A column was 30 standard deviations off on one day: 12 in another column are an alarm, and in itself are not."""
    values = own(30).values.copy()
    values[9, 0] += 30 / ROWS**0.5
    assert compare(own(30, values=values), far(0, 12, 0, 0)[None]).single.tolist() == [False, True, False, False]
    assert not compare(own(30, values=values), far(12, 0, 0, 0)[None]).single.any()


@pytest.mark.parametrize(("windows", "outcome"), [(20, "ok"), (19, "insufficient")])
def test_fewer_than_twenty_own_windows_say_nothing(windows, outcome):
    """19 could not tell one of 20."""
    assert compare(own(windows), far(0, 0, 0, 0)[None]).outcome == outcome


def test_phases_take_own_windows():
    """25 own windows of 7 phases are worth 19 that can vary."""
    assert compare(own(25, phases=np.arange(25) % 7), far(0, 0, 0, 0)[None]).outcome == "insufficient"
    assert compare(own(26, phases=np.arange(26) % 7), far(0, 0, 0, 0)[None]).outcome == "ok"


def test_a_contrast_that_moves_within_the_reference_is_not_judged():
    """A season: its own windows follow each other, and those of the others do not."""
    values = np.random.default_rng(3).standard_normal((30, 4)) / ROWS**0.5
    values[:, 0] = np.linspace(-2, 2, 30)
    found = compare(own(30, values=values), np.stack([far(99, 9, 0, 0), far(99, 9, 0, 0)]))
    assert found.judged.tolist() == [False, True, True, True]
    assert found.outcome == "alarm"
    assert found.flagged.tolist() == [False, True, False, False]


def test_a_slip_is_seen_in_a_season_too():
    """Of a column that moves by 2 within the reference, and by 60 now: one window that is like nothing before it."""
    values = np.random.default_rng(3).standard_normal((30, 4)) / ROWS**0.5
    values[:, 0] = np.linspace(-2, 2, 30) / ROWS**0.5
    found = compare(own(30, values=values), far(60, 0, 0, 0)[None])
    assert found.outcome == "alarm"
    assert found.flagged.tolist() == [True, False, False, False]
    assert compare(own(30, values=values), far(3, 0, 0, 0)[None]).outcome == "ok"


def test_nothing_that_can_be_judged_is_insufficient():
    """All contrasts are the same slow wave."""
    values = np.tile(np.sin(np.arange(30) / 8)[:, None], 4)
    assert compare(own(30, values=values), far(0, 0, 0, 0)[None]).outcome == "insufficient"


def test_what_is_large():
    """Half a standard deviation of location; ten points of nulls: angles of .0 and .1 are 0 and .6435."""
    before, after = np.zeros(4), np.array([0.49, 0.51, -0.51, 0.6436])
    assert is_large(KINDS, before, after).tolist() == [False, True, True, True]
    assert not is_large(KINDS, before, np.array([0, 0, 0, 0.64])).any()
