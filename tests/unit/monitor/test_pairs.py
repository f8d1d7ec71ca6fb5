"""Changes between columns, of which each by itself stays as it is."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.monitor.contrasts import CORRELATION
from raymlops.monitor.drift import judge
from raymlops.monitor.own_windows import OwnWindows, by_rows
from raymlops.monitor.pairs import PairCounts, correlations
from raymlops.monitor.profiled import column_counts, pair_counts
from raymlops.profiles.count import profile_of
from raymlops.profiles.reference import Chunk, reference_of

ROWS = 1_000


def sums(x, y):
    return np.array([len(x), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])


def table(seed, rows=ROWS, *, related=0.7):
    """Two numbers that go together, a text that goes with the first, and one that goes with nothing."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(2, rows))
    y = related * x + np.sqrt(1 - related**2) * noise
    return {
        "x": x,
        "y": y,
        "side": np.where(x + rng.normal(size=rows) > 0, "left", "right").astype(object),
        "z": rng.normal(size=rows),
    }


@pytest.fixture(scope="module")
def reference():
    known = table(0, 40 * ROWS)
    return reference_of(
        lambda: [Chunk(known, 40 * ROWS)], rows=40 * ROWS, row_order="ordered", scored=["y", "x", "side", "z"]
    )


def judged(reference, *windows, **more):
    profiles = [profile_of(window, reference.layout) for window in windows]
    columns, refused = column_counts(reference.blocks, profiles, influence={"x": 0.9, "y": 0.4})
    pairs = pair_counts(reference.blocks, profiles, without=refused, influence={"x": 0.9, "y": 0.4}, **more)
    return judge(columns + pairs, by_rows(reference.blocks.rows, rows=ROWS))


def test_a_correlation_is_that_of_the_rows():
    rng = np.random.default_rng(0)
    x, y = rng.integers(-9, 10, (2, 500))
    found = correlations(np.stack([sums(x, y), sums(x, x), sums(x, -x), sums(x, 0 * y)]))
    assert found[:3] == pytest.approx([np.corrcoef(x, y)[0, 1], 1, -1])
    assert np.isnan(found[3])


def test_the_contrast_is_fishers_z_and_a_window_of_one_value_has_the_mean():
    """atanh(.6) is .6931; a correlation of 1 counts as .999, whose z is 3.8."""
    ones, half = sums(*np.array([[1, -1] * 5, [1, -1] * 4 + [-1, 1]])), sums(*np.array([[1, -1] * 5] * 2))
    empty = sums(*np.array([[1] * 10, [1, -1] * 5]))
    pair = PairCounts("x and y", np.stack([ones, half]), np.stack([empty]))
    z, (meaning,) = pair.contrasts(by_rows(np.array([10, 10]), rows=10))
    assert meaning.kind == CORRELATION
    assert z[:, 0] == pytest.approx([np.arctanh(0.6), np.arctanh(0.999), (np.arctanh(0.6) + np.arctanh(0.999)) / 2])
    assert pair.rows(OwnWindows((), 0.0, ())).tolist() == [10]


def test_a_column_of_one_value_has_no_pair():
    constant = sums(*np.array([[1] * 10, [1, -1] * 5]))
    pair = PairCounts("x and y", np.stack([constant] * 2), np.stack([constant]))
    values, meanings = pair.contrasts(by_rows(np.array([10, 10]), rows=10))
    assert (values.shape, meanings) == ((3, 0), ())


def test_traffic_like_the_reference_is_ok(reference):
    verdict = judged(reference, table(1), table(2))
    assert verdict.outcome == "ok"
    names = {column.column for column in verdict.columns}
    assert names == {"x", "y", "z", "side", "y and x", "y and side=left", "x and side=left"} | {
        f"{name} and z" for name in ("y", "x", "side=left")
    }


def test_a_changed_correlation_is_an_alarm_that_names_the_pair(reference):
    """No column moved by itself; a pair matters as much as that column of which the answers depend less."""
    verdict = judged(reference, table(1, related=0.2), table(2, related=0.2))
    assert verdict.outcome == "alarm"
    first = verdict.columns[0]
    assert first.column == "y and x"
    assert {"x", "y", "z", "side"}.isdisjoint(verdict.flagged)
    assert first.moved.startswith("correlation +0.6")
    assert " -> +0." in first.moved
    assert (first.influence, first.quantiles) == (0.4, ())
    assert "two windows running" in verdict.reason
    assert "y and x (correlation" in verdict.reason


def test_rows_that_were_joined_wrongly_are_an_alarm(reference):
    """One column is that of other rows."""
    windows = [table(seed) | {"x": table(seed + 10)["x"]} for seed in (1, 2)]
    verdict = judged(reference, *windows)
    assert verdict.outcome == "alarm"
    assert verdict.flagged[0] == "y and x"


def test_a_column_that_is_not_judged_has_no_pairs(reference):
    """Such as one that was redacted: its scores say nothing."""
    gone = [{name: values for name, values in table(seed).items() if name != "x"} for seed in (1, 2)]
    verdict = judged(reference, *gone)
    assert verdict.outcome == "ok"
    assert {"x", "y and x"}.isdisjoint(column.column for column in verdict.columns)
