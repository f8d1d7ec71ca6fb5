"""Which blocks make a window of a reference's own."""

import numpy as np
import pytest

from raymlops.monitor.own_windows import DAY_S, WEEK_S, by_rows, by_time


def hours(weeks, *, each_h=1, rows=10):
    """Return the rows, starts and stops of blocks of so many hours."""
    starts = np.arange(0, weeks * WEEK_S, each_h * 3600)
    return np.full(len(starts), rows), starts, starts + each_h * 3600


def test_blocks_are_merged_to_the_rows_of_the_window():
    """Of 10 blocks of 100 rows, 3 make 310 rows best; the newest are whole, the oldest is left out."""
    own = by_rows(np.full(10, 100), rows=310)
    assert own.ranges == ((1, 4), (4, 7), (7, 10))
    assert own.rows == 300
    assert own.sums(np.arange(10)).tolist() == [1 + 2 + 3, 4 + 5 + 6, 7 + 8 + 9]


def test_a_window_smaller_than_a_block_is_compared_with_blocks():
    """Nothing can be shorter than what is kept."""
    own = by_rows(np.full(4, 100), rows=7)
    assert own.ranges == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert own.rows == 100


@pytest.mark.parametrize(("blocks", "rows"), [([100] * 4, 1000), ([], 10), ([0, 0], 10)])
def test_a_reference_smaller_than_a_window_has_none(blocks, rows):
    """It says why."""
    own = by_rows(np.array(blocks, dtype=np.int64), rows=rows)
    assert own.ranges == ()
    assert "the reference has" in own.why_few


def test_counts_of_bins_are_summed_by_window():
    """Two blocks of two bins each."""
    assert by_rows(np.array([3, 3, 3, 3]), rows=6).sums(np.array([[1, 2], [0, 3], [3, 0], [2, 1]])).tolist() == [
        [1, 5],
        [5, 1],
    ]


def test_days_have_the_phase_of_their_weekday():
    """Four weeks of hours, a day of the fifth: 28 own days; the day before is another weekday."""
    own = by_time(*hours(4), window_s=(4 * WEEK_S, 4 * WEEK_S + DAY_S))
    assert len(own.ranges) == 28
    assert own.ranges[-1] == (27 * 24, 28 * 24)
    assert own.rows == 240
    assert own.phase == (6, 0)
    assert own.lag == 1
    # The week is counted from the window: the day seven before it is of its phase.
    assert own.phases[-7] == own.phase[1]
    assert own.phases[-1] == own.phase[0]


def test_hours_are_compared_with_the_same_hours_of_the_week():
    """A day has four times six hours; the window before is those of the day before: 4 of 28 phases back.

    The newest own window ends six hours before, 84 of them begin 85 windows before.
    """
    own = by_time(*hours(3), window_s=(3 * WEEK_S + 6 * 3600, 3 * WEEK_S + 12 * 3600))
    assert own.lag == 4
    assert own.slots == tuple(range(-85, -1))
    assert own.phase == (24, 0)
    assert np.bincount(own.phases).tolist() == [3] * 28


def test_too_few_weeks_take_a_longer_reference():
    """Two weeks have each hour of the week twice, and whole weeks twice too."""
    own = by_time(*hours(2), window_s=(2 * WEEK_S, 2 * WEEK_S + DAY_S))
    assert own.ranges == ()
    assert own.why_few.endswith("is needed 3 times: take a longer reference")


def test_windows_that_a_reference_cuts_off_may_be_shorter():
    """Three weeks from midnight have 20 days from noon, but each hour of the week three times."""
    noon = 3 * WEEK_S + DAY_S / 2
    own = by_time(*hours(3), window_s=(noon - DAY_S, noon))
    assert own.ranges == ()
    assert own.why_few.endswith("take shorter windows, or a longer reference")
    assert len(by_time(*hours(3), window_s=(noon, noon + 3600)).ranges) == 3 * 168


def test_days_without_traffic_are_no_part_of_what_is_normal():
    """Five weeks from Monday to Friday: a Wednesday has 25 own days, and a Monday no day before it."""
    rows, starts, stops = hours(5)
    open_days = starts % WEEK_S < 5 * DAY_S
    blocks = rows[open_days], starts[open_days], stops[open_days]
    own = by_time(*blocks, window_s=(5 * WEEK_S + 2 * DAY_S, 5 * WEEK_S + 3 * DAY_S))
    assert len(own.ranges) == 25
    assert np.bincount(own.phases).tolist() == [5] * 5
    assert own.phases[-5] == own.phase[1] + 3
    assert own.phase == (4, 0)
    assert by_time(*blocks, window_s=(5 * WEEK_S, 5 * WEEK_S + DAY_S)).phase == (5, 0)
    assert by_time(*blocks, window_s=(5 * WEEK_S, 5 * WEEK_S + DAY_S), before_s=5 * WEEK_S - 3 * DAY_S).phase == (4, 0)
    assert by_time(*blocks, window_s=(5 * WEEK_S - DAY_S, 5 * WEEK_S)).ranges == ()


def test_times_without_rows_are_no_windows():
    """Nights of half a day are blocks of no rows: of five weeks the 35 days are windows, and no night is one."""
    rows, starts, stops = hours(5, each_h=12)
    rows[1::2] = 0
    own = by_time(rows, starts, stops, window_s=(5 * WEEK_S, 5 * WEEK_S + DAY_S / 2))
    assert own.ranges == tuple((2 * day, 2 * day + 1) for day in range(35))
    assert by_time(0 * rows, starts, stops, window_s=(5 * WEEK_S, 5 * WEEK_S + DAY_S)).ranges == ()


def test_a_window_longer_than_a_thirtieth_of_the_reference_is_compared_with_shorter_ones():
    """90 blocks of 100 rows against 5,000 rows: 30 own windows of 300, which differ more than those of 5,000 would."""
    own = by_rows(np.full(90, 100), rows=5000)
    assert (len(own.ranges), own.rows) == (30, 300)


def test_whole_weeks_have_no_phases():
    """Weeks before the window, whenever it starts: the part of a week that is left over is no window."""
    own = by_time(*hours(25), window_s=(25 * WEEK_S + DAY_S, 26 * WEEK_S + DAY_S))
    assert len(own.ranges) == 24
    assert set(own.phases) == {0}


@pytest.mark.parametrize("length_h", [5, 36, 200])
def test_lengths_that_do_not_fit_a_week_are_refused(length_h):
    """Their windows would be of other hours each time."""
    own = by_time(*hours(30), window_s=(0, length_h * 3600))
    assert own.ranges == ()
    assert "a week" in own.why_few


def test_blocks_longer_than_the_window_make_none():
    """A day of traffic against blocks of two days."""
    own = by_time(*hours(30, each_h=48), window_s=(0, DAY_S))
    assert own.ranges == ()
    assert "longer than the window" in own.why_few
