"""Where rows that have times are cut, and the windows of a reference's own that follow from it."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.monitor.drift import judge
from raymlops.monitor.own_windows import DAY_S, WEEK_S, by_time
from raymlops.monitor.profiled import column_counts
from raymlops.profiles.count import Counter
from raymlops.profiles.reference import Chunk, reference_of
from raymlops.profiles.slots import bounds_of, firsts_of

HOUR_S = 3600.0
START_S = 2800 * WEEK_S
"""A Thursday in 2023, where a window of 168 h begins."""


def referred(seconds, columns=None, **settings):
    """Return the reference of rows of these times."""
    columns = {"x": np.zeros(len(seconds))} if columns is None else columns
    return reference_of(lambda: [Chunk(columns, len(seconds), seconds)], rows=len(seconds), **settings)


def own_rows(reference, *, window_h):
    """Return the rows of each own window of so many hours, for one on a Thursday at 8 or where it begins, and those."""
    blocks, length = reference.blocks, window_h * HOUR_S
    begin = START_S + 50 * WEEK_S + 8 * HOUR_S // length * length
    own = by_time(blocks.rows, blocks.times[:-1], blocks.times[1:], window_s=(begin, begin + length))
    return own.sums(blocks.rows).tolist(), own


PANEL_S = START_S + np.repeat(np.arange(16 * 168) * HOUR_S, 40)
"""Sixteen weeks of hours, 40 rows each."""


@pytest.mark.parametrize(
    ("window_h", "windows", "rows"), [(6, 448, 240), (12, 224, 480), (24, 112, 960), (168, 16, 6720)]
)
def test_own_windows_of_a_panel_have_as_many_rows_as_its_days(window_h, windows, rows):
    """Slots of 6 h are the shortest of which there are at most 512: 2,688 / 6 = 448."""
    found = referred(PANEL_S)
    assert found.blocks.rows.tolist() == [240] * 448
    assert own_rows(found, window_h=window_h)[0] == [rows] * windows


def test_the_hour_as_an_input_is_no_drift_on_ordinary_days():
    """Each day has each hour 40 times; of 7 days, the ones after the reference, none is a warning."""
    rng = np.random.default_rng(0)

    def columns(seconds):
        return {"hour": seconds % DAY_S / HOUR_S, "x": rng.normal(size=len(seconds))}

    found = referred(PANEL_S, columns(PANEL_S))
    for day in range(7):
        begin = START_S + 16 * WEEK_S + day * DAY_S
        seconds = begin + np.repeat(np.arange(24) * HOUR_S, 40)
        counter = Counter(found.layout)
        counter.add(columns(seconds), rows=960)
        counts, _ = column_counts(found.blocks, [counter.profile()])
        times = found.blocks.times
        own = by_time(found.blocks.rows, times[:-1], times[1:], window_s=(begin, begin + DAY_S))
        verdict = judge([one for one in counts if one.name == "hour"], own)
        assert verdict.outcome == "ok"


def test_nights_without_rows_take_nothing_from_the_days_beside_them():
    """Five weeks of days from 8 to 18, Monday to Friday: 25 days of 10 hours, and each hour has its own 30 rows."""
    hours = np.arange(5 * 168)
    hours = hours[(hours % 24 >= 8) & (hours % 24 < 18) & (hours // 24 % 7 < 5)]
    found = referred(START_S + np.repeat(hours * HOUR_S, 30))
    assert set(found.blocks.rows.tolist()) == {0, 30}
    assert own_rows(found, window_h=1)[0] == [30] * 250
    # Where the reference begins and ends within a day, nothing says that the rest of it had no rows.
    assert own_rows(found, window_h=24)[0] == [300] * 23


def test_a_few_rows_at_night_stay_in_their_day():
    """At 22 h there are 7: they count with those of the hours before midnight."""
    hours = np.arange(28 * 24)
    each = np.where(hours % 24 == 22, 7, np.where((hours % 24 >= 8) & (hours % 24 < 18), 30, 0))
    found = referred(START_S + np.repeat(hours * HOUR_S, each))
    assert set(found.blocks.rows.tolist()) == {0, 30, 37}
    assert set(own_rows(found, window_h=24)[0]) == {307}


def test_dates_are_blocks_of_a_day():
    """Two months of dates without Sundays: 52 days of 100 rows."""
    days = np.array([day for day in range(61) if day % 7 != 3])
    found = referred(START_S + np.repeat(days * DAY_S, 100))
    assert own_rows(found, window_h=24)[0] == [100] * len(days)
    assert own_rows(found, window_h=6)[1].why_few.startswith("the reference's blocks are longer")


def test_months_are_not_compared_with_days():
    """Rows that have the first day of their month as time: a block is as long as the shortest month."""
    months = np.arange("2015-01", "2020-01", dtype="datetime64[M]").astype("datetime64[s]").astype(float)
    found = referred(np.repeat(months, 200))
    assert found.blocks.rows[found.blocks.rows > 0].tolist() == [200] * 60
    assert own_rows(found, window_h=24)[1].why_few.startswith("the reference's blocks are longer")


def test_a_month_that_has_nearly_all_rows_has_blocks_of_hours():
    """Of ten years, 99,000 of 100,000 rows are in one month, 137 an hour: its days are of blocks of two hours."""
    rng = np.random.default_rng(0)
    month = START_S + 200 * WEEK_S + rng.random(99_000) * 30 * DAY_S
    found = referred(np.sort(np.concatenate([month, START_S + rng.random(1000) * 3650 * DAY_S])))
    times, rows = found.blocks.times, found.blocks.rows
    inside = (times[:-1] >= START_S + 200 * WEEK_S) & (times[1:] <= START_S + 200 * WEEK_S + 30 * DAY_S)
    assert 355 <= inside.sum() <= 362
    assert np.median(np.diff(times)[inside]) == 2 * HOUR_S
    assert len(rows) <= 512
    assert rows[rows > 0].min() >= 20


@pytest.mark.parametrize(("begin_h", "end_h", "days"), [(0, 24, 42), (9, 24, 41), (9, 17, 40), (3, 21, 40)])
def test_days_that_are_covered_in_part_are_no_windows(begin_h, end_h, days):
    """Of six weeks, whose first and last day may be cut; the bounds of whole slots are no row's own time."""
    seconds = np.arange(begin_h * 3600 + 7, (41 * 24 + end_h) * 3600, 61.0)
    found = referred(START_S + seconds)
    rows, own = own_rows(found, window_h=24)
    slots = (found.blocks.times - START_S) / HOUR_S
    assert np.array_equal(slots % 0.5, np.zeros(len(slots)))
    assert len(rows) == days
    assert len(own.ranges) == days


def test_rows_of_which_some_are_read_are_counted_in_their_slots():
    """Of 403,200 rows every fourth one is read for the bounds; each is counted in its hour."""
    rng = np.random.default_rng(0)
    hours = np.repeat(np.arange(504), 800)
    seconds = START_S + (hours + rng.random(len(hours))) * HOUR_S
    found = referred(seconds)
    assert own_rows(found, window_h=1)[0] == [800] * 504


def test_a_reference_of_a_few_minutes_has_blocks_of_seconds():
    """Of 200 s there are four blocks of a minute, of 4,000 s fourteen of 5 min."""
    assert bounds_of(START_S + np.arange(400.0) / 2, rows=400, most=512).tolist()[:2] == [START_S, START_S + 60]
    assert np.diff(bounds_of(START_S + np.arange(4000.0), rows=4000, most=512)).tolist() == [300.0] * 13 + [150.0]


def test_independent_rows_have_blocks_of_equally_many():
    """Their windows are of rows, whatever their times are."""
    found = referred(np.sort(np.random.default_rng(0).exponential(size=20_000)) * DAY_S, row_order="independent")
    assert len(found.blocks) == 500
    assert found.blocks.rows.max() < 80


def test_blocks_of_few_rows_are_put_together_within_the_shortest_window():
    """Of 2 h each: 5 + 30 of the first six hours, 8 + 9 + 9 and 20, then 3 that go back to them, 0, 1 and 40."""
    rows = np.array([0, 5, 30, 8, 9, 9, 20, 3, 0, 0, 1, 40])
    assert firsts_of(rows, np.arange(12) * 2 * HOUR_S).tolist() == [0, 1, 3, 6, 9, 10]
    assert firsts_of(np.array([3, 0, 4]), np.arange(3.0)).tolist() == [0]


@pytest.mark.parametrize("times", [[], [5.0] * 100, [np.nan, np.inf], [1e300, -1e300]])
def test_times_that_are_not_two_have_no_bounds(times):
    assert len(bounds_of(np.array(times), rows=100, most=512)) == 0
