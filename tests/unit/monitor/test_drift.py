"""The verdict on a window, from counts to a sentence."""

from dataclasses import replace

import numpy as np
import pytest

from raymlops.monitor.contrasts import polynomials
from raymlops.monitor.drift import ColumnCounts, judge, together
from raymlops.monitor.own_windows import OwnWindows, by_rows, by_time

ROWS = 1_000
BLOCKS = 40
EDGES = np.linspace(0, 8, 9)
FLAT, MOVED = np.full(8, 1 / 8), np.array([4, 5, 6, 7, 9, 10, 11, 12]) / 64
CODES, SHIFTED = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
OWN = by_rows(np.full(BLOCKS, ROWS), rows=ROWS)


def column(name, *shares, ordered=True, nulls=0.0, nulls_now=None, blocks=BLOCKS, rows=ROWS, **more):
    """Return a column whose reference has the first shares and whose windows have the others, one each."""
    rng = np.random.default_rng([ord(letter) for letter in name])
    usual, windows = shares[0], shares[1:]
    gone, now = (
        rng.binomial(ROWS, nulls, blocks),
        rng.binomial(rows, nulls if nulls_now is None else nulls_now, len(windows)),
    )
    return ColumnCounts(
        name,
        blocks=np.stack([rng.multinomial(ROWS - missing, usual) for missing in gone]),
        nulls=gone,
        windows=np.stack([rng.multinomial(rows - missing, share) for missing, share in zip(now, windows, strict=True)]),
        window_nulls=now,
        ordered=ordered,
        edges=EDGES if ordered else None,
        labels=() if ordered else ("AA", "BB", "CC", "DD")[: len(usual)],
        **more,
    )


def usual(windows=2):
    return [
        column("temperature", *[FLAT] * (windows + 1)),
        column("wind", *[FLAT] * (windows + 1), nulls=0.02),
        column("carrier", *[CODES] * (windows + 1), ordered=False),
    ]


def test_the_worst_of_two_parts_is_the_verdict():
    """What led to it is named, its columns are the first, and its rank is the lower one of both."""
    moved = judge([column("distance", FLAT, MOVED, MOVED)], OWN, share=0.5)
    still = judge(usual(), OWN, share=0.5)
    verdict = together([still, moved])
    assert (verdict.outcome, verdict.reason, verdict.flagged) == ("alarm", moved.reason, ("distance",))
    assert verdict.columns[0].column == "distance"
    assert len(verdict.columns) == 4
    assert verdict.p_two == moved.p_two < still.p_two
    assert together([still]) == still


def test_what_is_merely_warned_of_in_one_part_is_no_part_of_another_ones_alarm():
    """An incident is of flagged columns, and whoever acknowledges it makes them normal."""
    alarm = judge([*usual(), column("distance", FLAT, MOVED, MOVED)], OWN, share=0.5)
    warning = judge([column("height", FLAT, FLAT, MOVED)], OWN, share=0.5)
    assert (alarm.outcome, warning.outcome) == ("alarm", "warn")
    for found in ([alarm, warning], [warning, alarm]):
        assert together(found).flagged == ("distance",)
        assert {one.column for one in together(found).columns} > {"distance", "height"}
    assert together([judge(usual(), OWN), warning]).flagged == ("height",)


def test_traffic_like_the_reference_is_ok():
    """With its numbers: own windows, ranks, and a sentence."""
    verdict = judge(usual(), OWN)
    assert verdict.outcome == "ok"
    assert verdict.flagged == ()
    assert verdict.rows == ROWS
    assert verdict.own_windows == BLOCKS
    assert 0.05 < verdict.p_one <= 1
    assert verdict.reason.startswith("like the 40 own windows of the reference (p ")


def test_what_moved_twice_is_an_alarm_that_names_it():
    """Mean 4.95 of 8 bins after 4: by quantiles, by distance, and by what moved."""
    verdict = judge([*usual(), column("distance", FLAT, MOVED, MOVED)], OWN)
    assert verdict.outcome == "alarm"
    assert verdict.flagged == ("distance",)
    assert verdict.p_two <= 0.005
    moved = verdict.columns[0]
    assert (moved.column, moved.moved) == ("distance", "location")
    assert moved.distance_running > 5
    before, after = moved.quantiles
    assert before[2] == pytest.approx(4, abs=0.1)
    assert after[2] == pytest.approx(5.1, abs=0.3)
    assert moved.jensen_shannon == pytest.approx(0.14, abs=0.03)
    assert "two windows running are unlike 40 own windows" in verdict.reason
    assert "distance (location, +" in verdict.reason
    assert 2 < verdict.band_running < verdict.band < moved.distance
    assert moved.histogram.after[-1] > moved.histogram.before[-1]
    assert all(other.histogram is None for other in verdict.columns[1:])


def test_quantiles_beyond_the_bins_of_the_reference_are_not_told_as_numbers():
    """A unit that slipped leaves all values in the lowest bin, which has no end."""
    slipped = np.array([1.0, *[0.0] * (len(FLAT) - 1)])
    edges = np.array([-np.inf, *EDGES[1:-1], np.inf])
    moved = judge([replace(column("distance", FLAT, slipped, slipped), edges=edges)], OWN).columns[0]
    assert np.isnan(moved.quantiles[1]).all()
    assert moved.outside[1] == (1.0, 0.0)
    low = f"below {moved.span[0]:.4g}"
    assert [side[2] for side in moved.quantile_texts] == [f"{moved.quantiles[0][2]:.4g}", low]


def test_location_is_told_first_where_it_leads_to_the_verdict():
    """A unit that slipped moves each shape, here asymmetry most, which is not called skew."""
    corner = np.array([0.9, *[0.1 / 7] * 7])
    verdict = judge([column("distance", FLAT, corner, corner)], OWN)
    assert verdict.columns[0].moved == "location"
    shape = polynomials(FLAT)[2]
    bent = FLAT * (1 + 0.3 * shape)
    verdict = judge([column("distance", FLAT, bent, bent)], OWN)
    assert verdict.columns[0].moved == "skew"
    assert "distance (asymmetry, " in verdict.reason


def test_a_renamed_category_is_no_text_of_training():
    """The last bin is of all others: empty in the reference, it is told as what it is."""
    before, after = np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.0, 0.5])
    renamed = replace(column("clinic", before, after, after, ordered=False), labels=("A", "B", "other"))
    assert judge([renamed], OWN).columns[0].new == ("texts that training has not, or hardly",)
    assert judge([replace(renamed, labels=("A", "B", "C"))], OWN).columns[0].new == ("C",)


def test_what_moved_once_is_a_warning():
    """The window before was as ever."""
    verdict = judge([*usual(), column("distance", FLAT, FLAT, MOVED)], OWN)
    assert verdict.outcome == "warn"
    assert verdict.flagged == ("distance",)
    assert "so far once" in verdict.reason


def test_one_window_without_one_before_it_is_at_most_a_warning_where_it_is_no_slip():
    """There is no second rank."""
    verdict = judge([*usual(1), column("distance", FLAT, MOVED)], OWN)
    assert verdict.outcome == "warn"
    assert verdict.p_two is None
    assert verdict.columns[0].distance_running is None


def test_a_slip_of_units_is_an_alarm_at_once():
    """All values in the highest bin."""
    verdict = judge([*usual(1), column("distance", FLAT, np.eye(8)[7])], OWN)
    assert verdict.outcome == "alarm"
    assert verdict.flagged == ("distance",)
    assert "further off than 40 own windows explain" in verdict.reason


def test_a_column_gone_null_is_an_alarm_at_once():
    """Nulls of 2% before and of all now; nothing is said of its values."""
    verdict = judge([*usual(1), column("gust", FLAT, FLAT, nulls=0.02, nulls_now=1.0)], OWN)
    assert verdict.outcome == "alarm"
    gone = verdict.columns[0]
    assert (gone.column, gone.moved) == ("gust", "nulls")
    assert gone.nulls == (pytest.approx(0.02, abs=0.002), 1.0)


def test_points_of_a_category_are_named_by_it():
    """Ten points from AA to BB, twice."""
    verdict = judge([*usual(), column("origin", CODES, SHIFTED, SHIFTED, ordered=False)], OWN)
    assert verdict.outcome == "alarm"
    assert verdict.columns[0].moved in {"share of AA", "share of BB"}
    assert verdict.columns[0].quantiles == ()


def test_a_renamed_category_is_new_and_the_old_one_vanished():
    """BB becomes DD."""
    before, after = np.array([0.5, 0.3, 0.2, 0]), np.array([0.5, 0, 0.2, 0.3])
    renamed = judge([*usual(1), column("origin", before, after, ordered=False)], OWN).columns[0]
    assert renamed.column == "origin"
    assert (renamed.new, renamed.vanished) == (("DD",), ("BB",))


def test_flagged_columns_come_by_what_the_output_depends_on():
    """Then those that are not flagged; a column of which nobody knows comes last of its kind."""
    columns = [
        column("a", FLAT, MOVED, MOVED),
        column("b", FLAT, MOVED, MOVED, influence=0.1),
        column("c", FLAT, MOVED, MOVED, influence=0.9),
        column("d", FLAT, FLAT, FLAT, influence=1.0),
    ]
    assert [one.column for one in judge(columns, OWN).columns] == ["c", "b", "a", "d"]


def test_few_own_windows_are_said():
    """A reference of 13 blocks."""
    verdict = judge(usual(), by_rows(np.full(13, ROWS), rows=ROWS))
    assert verdict.outcome == "insufficient"
    assert verdict.own_windows == 13
    assert "13 own windows, and 20 are needed: the reference has 13,000 rows" in verdict.reason
    days = 86_400.0 * np.arange(26)
    by_day = by_time(np.full(25, ROWS), days[:-1], days[1:], window_s=(days[-1], days[-1] + 86_400.0))
    verdict = judge([column("distance", FLAT, FLAT, blocks=25)], by_day)
    assert "25 own windows of 7 times of the week, and 26 are needed" in verdict.reason


def test_own_windows_that_are_alike_one_after_the_other_are_worth_few():
    """A category grows from 300 to 700 rows in 26 steps: 0.13 windows, told to the tenth below."""
    half, some = np.array([0.5, 0.5]), np.linspace(300, 700, 26).astype(np.int64)
    slow, moving = column("carrier", half, half, ordered=False, blocks=26), np.stack([some, ROWS - some], axis=1)
    verdict = judge([replace(slow, blocks=moving)], by_rows(np.full(26, ROWS), rows=ROWS))
    assert verdict.outcome == "insufficient"
    assert verdict.reason == (
        "26 own windows, so alike one after the other that they are worth 0.1, and 12 are needed: "
        "take longer windows, or a longer reference"
    )


def test_a_window_of_three_rows_says_nothing():
    """Nor does it warn."""
    verdict = judge([column("temperature", FLAT, FLAT, rows=3)], OWN)
    assert verdict.outcome == "insufficient"
    assert verdict.reason == "3 rows, and 100 are needed: take longer windows"


def test_a_small_window_is_not_taken_for_drift():
    """Of 100 rows against own windows of 1,000: it varies ten times as much, and its distances are cut by sqrt(10)."""
    alarms = [judge([column(f"small {at}", FLAT, FLAT, FLAT, rows=100)], OWN).outcome == "alarm" for at in range(60)]
    assert sum(alarms) <= 1


def test_a_column_that_moves_within_the_reference_is_not_judged():
    """A season in it, and the others are judged as before."""
    season = column("season", FLAT, FLAT, FLAT)
    weights = np.linspace(0, 1, BLOCKS)[:, None]
    season = replace(season, blocks=np.round(ROWS * ((1 - weights) * MOVED[::-1] + weights * MOVED)).astype(np.int64))
    verdict = judge([*usual(), season, column("distance", FLAT, MOVED, MOVED)], OWN)
    assert verdict.flagged == ("distance",)
    found = {one.column: one for one in verdict.columns}
    assert "location" in found["season"].unjudged
    assert found["distance"].unjudged == ()
    assert verdict.reason.endswith("judged for slips alone, since they move within the reference: season")


def test_an_empty_column_is_no_obstacle():
    """All null, before and now; nor is one without a row."""
    empty = replace(
        column("empty", FLAT, FLAT, FLAT),
        blocks=np.zeros((BLOCKS, 8), int),
        nulls=np.full(BLOCKS, ROWS),
        windows=np.zeros((2, 8), int),
        window_nulls=np.full(2, ROWS),
    )
    assert judge([*usual(), empty], OWN).outcome == "ok"


def test_columns_that_never_change_are_ok():
    """As long as they do not: a second value is an alarm at once, if there is much of it."""
    still = column("still", np.eye(8)[3], np.eye(8)[3])
    assert judge([still], OWN).outcome == "ok"
    verdict = judge([*usual(1), replace(still, windows=still.windows[:, ::-1])], OWN)
    assert verdict.outcome == "alarm"
    assert verdict.flagged == ("still",)


def test_days_of_the_week_are_not_drift():
    """Weekends are unlike other days, in the reference and now."""
    starts = np.arange(56) * 86_400.0
    own = by_time(np.full(56, ROWS), starts, starts + 86_400, window_s=(56 * 86_400.0, 57 * 86_400.0))
    rng = np.random.default_rng(9)

    def day(at):
        return rng.multinomial(ROWS, MOVED if at % 7 > 4 else MOVED[::-1])

    weekly = ColumnCounts(
        "weekly",
        np.stack([day(at) for at in range(56)]),
        np.zeros(56, int),
        np.stack([day(55), day(56)]),
        np.zeros(2, int),
        ordered=True,
    )
    assert judge([weekly], own).outcome == "ok"
    late = replace(weekly, windows=np.stack([day(53), day(54)]))
    assert judge([late], own).outcome == "alarm"


def test_columns_need_as_many_windows_each():
    """Nothing is guessed."""
    with pytest.raises(ValueError, match=r"one window or two, got \[1, 2\]"):
        judge([column("a", FLAT, FLAT), column("b", FLAT, FLAT, FLAT)], OWN)
    with pytest.raises(ValueError, match="got"):
        judge([], OWN)


def test_a_reference_without_windows_is_insufficient():
    """It says what to do, as whoever made the windows said it."""
    verdict = judge(usual(), OwnWindows((), 0.0, (), why_few="shuffled rows have no windows"))
    assert verdict.outcome == "insufficient"
    assert verdict.reason.endswith("shuffled rows have no windows")
