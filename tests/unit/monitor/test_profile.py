"""Reference profiles, with hand-made columns."""

from __future__ import annotations

import json

import numpy as np
import pytest

from raymlops.monitor.profile import profile
from raymlops.monitor.stats import category_summary, numeric_summary


def summary(values) -> dict:
    """Return the summary of one column, which must be JSON."""
    found = profile({"x": values})
    return json.loads(json.dumps(found, allow_nan=False))["columns"]["x"]


def test_numbers_get_moments_quantiles_and_bins_of_equal_counts():
    """0 to 100 with a gap: mean 50, variance (101^2 - 1) / 12 = 850, twenty bins of 5 and the last of 6."""
    found = summary(np.append(np.arange(101.0)[::-1], np.nan))

    assert (found["kind"], found["count"], found["missing"], found["infinite"]) == ("numeric", 102, 1, 0)
    assert (found["mean"], found["min"], found["max"]) == (50, 0, 100)
    assert found["std"] == pytest.approx(np.sqrt(850))
    assert found["quantiles"]["0.05"] == 5
    assert found["edges"] == list(range(0, 101, 5))
    assert found["counts"] == [5] * 19 + [6]


def test_bins_and_quantiles_agree_with_numpy():
    """On numbers with ties: every finite value is in one bin, the edges are quantiles."""
    values = np.round(np.random.default_rng(0).exponential(size=3000), 1)

    found = numeric_summary(values)

    assert found["edges"] == np.unique(np.quantile(values, np.linspace(0, 1, 21))).tolist()
    assert found["counts"] == np.histogram(values, found["edges"])[0].tolist()
    assert sum(found["counts"]) == 3000
    assert found["quantiles"]["0.75"] == pytest.approx(np.quantile(values, 0.75))


@pytest.mark.parametrize(
    ("values", "edges", "counts"),
    [([3.5, 3.5], [3.5, 3.5], [2]), ([np.nan], [], []), ([], [], []), ([1.0, np.inf], [1.0, 1.0], [1])],
)
def test_numbers_without_spread_or_without_any_value_have_a_profile_too(values, edges, counts):
    """A constant column, an empty one, one with an infinity."""
    found = summary(np.array(values, dtype=np.float64))

    assert (found["edges"], found["counts"]) == (edges, counts)


def test_times_and_bytes_are_no_numbers_to_drift():
    """Times are seconds since 1970 under a kind of their own; of bytes only lengths are kept."""
    times = summary(np.array(["1970-01-01T00:00:10", "NaT", "1970-01-01T00:00:30.5"], dtype="datetime64[us]"))
    assert (times["kind"], times["count"], times["missing"]) == ("datetime", 3, 1)
    assert (times["min"], times["max"], times["mean"]) == (10, 30.5, 20.25)
    found = summary(np.array([None, b"abc", b"", b"secret"], dtype=object))
    assert (found["kind"], found["count"], found["missing"]) == ("bytes", 4, 1)
    assert (found["lengths"]["min"], found["lengths"]["max"]) == (0, 6)
    assert "secret" not in json.dumps(found)
    pixels = summary(np.full((2, 4, 4, 3), 7, dtype=np.uint8))
    assert (pixels["kind"], pixels["mean"], pixels["elements"]) == ("tensor", 7, 96)


def test_text_is_counted_with_what_is_missing():
    """Ties in the order of the text."""
    found = summary(np.array(["b", "a", "c", None, "c"], dtype=object))

    assert found == {
        "kind": "categorical",
        "count": 5,
        "missing": 1,
        "distinct": 3,
        "counts": [["c", 2], ["a", 1], ["b", 1]],
        "other": 0,
    }


def test_rare_categories_are_counted_together():
    """The two commonest by name."""
    found = category_summary(["x"] * 3 + ["y"] * 2 + ["z", "w"], top=2)

    assert (found["counts"], found["other"], found["distinct"]) == ([["x", 3], ["y", 2]], 2, 4)


def test_few_integers_and_booleans_are_categories_and_many_are_numbers():
    """A month is one, a distance is not."""
    assert summary(np.array([1, 12, 1]))["counts"] == [[1, 2], [12, 1]]
    assert summary(np.array([True, False, True]))["counts"] == [[True, 2], [False, 1]]
    assert summary(np.arange(51))["kind"] == "numeric"


def test_tensors_are_summarised_over_their_elements():
    """Two images of two pixels; sequences of one and three tokens with their lengths."""
    ragged = np.empty(2, dtype=object)
    ragged[:] = [np.array([1]), np.array([2, 3, 4])]

    images, sequences = summary(np.array([[0.0, 1.0], [2.0, 3.0]])), summary(ragged)

    assert (images["kind"], images["mean"], images["elements"], images["shape"]) == ("tensor", 1.5, 4, [2])
    assert (sequences["kind"], sequences["mean"], sequences["lengths"]["mean"]) == ("tensor", 2.5, 2.0)


def test_large_tensors_are_sampled_evenly():
    """Two and a half million elements, every third of them; all are counted."""
    found = summary(np.arange(2_500_000.0).reshape(-1, 500))

    assert (found["count"], found["elements"]) == (833_334, 2_500_000)
    assert found["max"] == 2_499_999


def test_no_columns_have_an_empty_profile():
    """A recipe of torch datasets has no columns."""
    assert profile({}) == {"version": 1, "rows": 0, "columns": {}}
