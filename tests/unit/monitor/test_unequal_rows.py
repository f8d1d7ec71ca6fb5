"""Slices beside all rows: what moved in few rows is seen, and chance is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drift_slices import NAMES, counted, drifted, judged
from drift_worlds import IID, SHIFTS, shares
from spread import at_most, spread

from raymlops.monitor.drift import ColumnCounts, judge
from raymlops.monitor.own_windows import OwnWindows
from raymlops.monitor.unequal_rows import steadied

OWN, ROWS = 30, 5_000
ALONE = OwnWindows(tuple((at, at + 1) for at in range(OWN)), 0.0, (0,) * OWN)


def simulated(seed, *, windows=3):
    return counted(np.random.default_rng([7, seed]), IID, windows=OWN + windows, rows=ROWS, columns=4)


@at_most(6)
def test_slices_are_no_further_chance_of_a_false_alarm(most):
    """Ten windows of each seed without drift: one alarm in a hundred, and one warning in twenty, as without slices."""
    said = {0: [], len(NAMES): []}
    for seed in spread(range(20), most):
        counts, _ = simulated(seed, windows=11)
        for slices, found in said.items():
            found += [one.outcome for one in judged(counts, own=OWN, slices=slices, windows=10)]
    for found in said.values():
        assert set(found) <= {"ok", "warn", "alarm"}
        assert found.count("alarm") <= 0.01 * len(found)
        assert found.count("warn") <= 0.05 * len(found)


def test_a_shift_in_one_slice_that_the_whole_cannot_see_names_the_slice():
    """Half a standard deviation in 5% of rows is 1.8 sd of the whole's mean, and 7.9 of the slice's."""
    counts, shifted = simulated(1)
    moved = drifted(counts, shifted[SHIFTS.index(0.5)], own=OWN, parts=[0])
    (without,) = judged(moved, own=OWN, slices=0, windows=1)
    assert without.outcome != "alarm"
    (verdict,) = judged(moved, own=OWN, slices=len(NAMES), windows=1)
    assert (verdict.outcome, verdict.flagged) == ("alarm", (f"x0[{NAMES[0]}]",))
    assert verdict.rows == ROWS
    assert f"x0[{NAMES[0]}] (location, +" in verdict.reason


def column(name, rows, windows, *, of="", seed=0):
    rng = np.random.default_rng(seed)
    draw = [rng.multinomial(each, np.full(8, 1 / 8)) for each in (*rows, *windows)]
    nothing = np.zeros(len(draw), np.int64)
    return ColumnCounts(
        name, np.array(draw[:OWN]), nothing[:OWN], np.array(draw[OWN:]), nothing[OWN:], ordered=True, slice=of
    )


def test_a_slice_that_is_rare_in_a_window_counts_for_less():
    """Of 100 rows in place of 400 the distance is half of what 400 rows with these shares would have."""
    usual = column("x[s=a]", [400] * OWN, [400, 400], of="s=a")
    shares = np.array([2, 4, 5, 6, 7, 8, 8, 10]) / 50
    distances = []
    for rows in (400, 100):
        windows = np.rint(np.stack([shares, shares]) * rows).astype(np.int64)
        whole = column("x", [4_000] * OWN, [4_000, 4_000], seed=1)
        verdict = judge([whole, replace(usual, windows=windows)], ALONE)
        distances.append(next(one.distance for one in verdict.columns if one.column == "x[s=a]"))
    assert distances[1] == pytest.approx(distances[0] / 2, rel=0.02)


def test_windows_in_which_a_slice_is_nearly_missing_say_little_of_how_much_windows_vary():
    """Ten own windows of 3 rows, one of none: a shift is found nearly as well as with 400 rows in each."""
    full, some = [400] * OWN, [400] * (OWN - 11) + [3] * 10 + [0]
    distances = []
    for rows in (full, some):
        found = column("x[s=a]", rows, [400, 400], of="s=a")
        windows = found.windows + np.array([-30, -20, -10, 0, 0, 10, 20, 30])
        verdict = judge([column("x", full, [400, 400], seed=1), replace(found, windows=windows)], ALONE)
        distances.append(next(one.distance for one in verdict.columns if one.column == "x[s=a]"))
    assert distances[1] > 0.6 * distances[0] > 1.5


def test_a_contrast_of_few_rows_is_drawn_towards_the_mean_of_its_phase():
    """25 of 100 rows: half as far from the mean, which is (0 + 0 + 25 x 8) / 225; another phase stays as it is."""
    values = np.array([[0.0], [0.0], [8.0], [5.0]])
    rows, phases = np.array([100, 100, 25, 400]), np.array([0, 0, 0, 1])
    found = steadied(values, rows, phases, usual=100)
    mean = 200 / 225
    assert found[:, 0] == pytest.approx([0, 0, mean + (8 - mean) / 2, 5])
    assert steadied(values, rows, phases, usual=25) is values


def test_a_slice_whose_rows_vary_hides_no_shift_of_the_whole():
    """Own windows with a tenth of the slice's usual rows are no nearer to an alarm than those with all of them."""
    rng = np.random.default_rng(3)
    moved = column("x", [5_000] * OWN, [5_000, 5_000], seed=1)
    moved = replace(moved, windows=moved.windows + np.array([-90, -60, -30, 0, 0, 30, 60, 90]))
    bands = []
    for factors in (np.ones((12, OWN)), np.where(rng.random((12, OWN)) < 0.3, 0.1, 1.0)):
        rows = (2_000 * factors).astype(int).tolist()
        sliced = [column(f"x[s={at}]", rows[at], [2_000] * 2, of=f"s={at}", seed=9 + at) for at in range(12)]
        verdict = judge([moved, *sliced], ALONE)
        bands.append(verdict.band_running)
        assert (verdict.outcome, verdict.flagged) == ("alarm", ("x",))
    assert bands[1] == pytest.approx(bands[0], rel=0.1)


def counted_days(rng, windows, *, a_window, jump=0.0):
    """Return 1,000 rows of 64 levels in each window, whose mean moves by so much from each to the next."""
    mean = np.arange(windows) * a_window
    mean[-2:] += jump
    spread = 1 + np.ptp(mean) / 4  # so that levels are those of all windows
    return rng.multinomial(1_000, shares((mean - mean[:56].mean()) / spread))


def as_counts(name, counts):
    nothing = np.zeros(len(counts), np.int64)
    return ColumnCounts(name, counts[:-2], nothing[:-2], counts[-2:], nothing[-2:], ordered=True)


@pytest.mark.parametrize("days", [30, 60])
def test_in_a_column_with_a_steady_trend_nothing_but_a_slip_is_seen(days):
    """It goes on by a standard deviation in 30 or 60 days: 39 and 34 of 76 windows alarmed, by asymmetry or scale.

    A unit that slips is seen, and so is another column that moves by a quarter of a standard deviation.
    """
    own = OwnWindows(tuple((at, at + 1) for at in range(56)), 0.0, (0,) * 56)
    said = []
    for seed in range(4):
        rng = np.random.default_rng([5, seed])
        x, y = (counted_days(rng, 76, a_window=each) for each in (1 / days, 0.0))
        for at in range(57, 76):
            chosen = [*range(56), at - 1, at]
            verdict = judge([as_counts("x", x[chosen]), as_counts("y", y[chosen])], own)
            said.append(verdict.outcome)
            assert "location" in next(one.unjudged for one in verdict.columns if one.column == "x")
    assert said.count("alarm") <= 1
    slipped = x[chosen].copy()
    slipped[-1] = slipped[-1].sum() * (np.arange(64) == 63)
    found = judge([as_counts("x", slipped), as_counts("y", y[chosen])], own)
    assert (found.outcome, found.flagged) == ("alarm", ("x",))
    moved = counted_days(rng, 58, a_window=0.0, jump=0.25)
    assert judge([as_counts("x", x[chosen]), as_counts("y", moved)], own).flagged == ("y",)
