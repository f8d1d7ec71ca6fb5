"""What becomes an edge or a category of a layout."""

from __future__ import annotations

import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.profiles.layout import Series
from raymlops.profiles.learn import PRIVATE_ROWS, Learner, edges_of


def layout_of(**columns):
    """Return the layout of a table, added in two chunks."""
    rows = len(next(iter(columns.values())))
    learner = Learner()
    for part in (slice(rows // 3), slice(rows // 3, None)):
        chunk = {name: values[part] for name, values in columns.items()}
        learner.add(chunk, rows=len(next(iter(chunk.values()))))
    return learner.layout()


def series_of(**columns):
    return {(series.column, series.measure): series for series in layout_of(**columns).series}


def test_bins_hold_about_equally_many_rows():
    """50,000 rows in 256 bins: 195 each, off by the rounding of an edge within 20 rows of its quantile."""
    values = np.random.default_rng(0).normal(size=50_000)
    edges = edges_of(values, bins=256)
    counts = np.bincount(np.searchsorted(edges, values, side="right"))[1:-1]
    assert len(edges) == 257
    assert counts[1:-1].min() > 150
    assert counts[1:-1].max() < 240


def test_edges_are_round_numbers():
    """Of normal numbers with 16 digits, few are enough to be near a quantile."""
    edges = edges_of(np.random.default_rng(0).normal(size=50_000), bins=16)
    edges = Series("x", "number", edges).shown_edges
    assert max(len(f"{edge:.15g}".strip("-").replace(".", "").strip("0")) for edge in edges) <= 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(-40, 40).map(float),
            st.floats(allow_nan=True, allow_infinity=True),
            st.sampled_from([0.1, 1e-300, 1e300]),
        ),
        min_size=0,
        max_size=400,
    )
)
def test_no_edge_is_a_value_that_few_rows_have(values):
    """Rising, finite, and either nobody's value or that of 20 rows."""
    array = np.array(values, np.float64)
    edges = edges_of(array, bins=256)
    assert np.isfinite(edges).all()
    assert (edges[1:] > edges[:-1]).all()  # a difference of the largest numbers overflows
    numbers, counts = np.unique(array, return_counts=True)
    few = numbers[counts < PRIVATE_ROWS]
    assert not np.isin(edges, few).any()


def test_a_value_that_many_rows_have_has_a_bin_of_its_own():
    """60% are 0: they are alone in their bin, and so is each month."""
    rng = np.random.default_rng(0)
    rain = np.where(rng.random(10_000) < 0.6, 0.0, rng.exponential(size=10_000))
    month = rng.integers(1, 13, 10_000)
    for values, own in ((rain, [0.0]), (month, range(1, 13))):
        edges = edges_of(values.astype(float), bins=256)
        for value in own:
            cell = np.searchsorted(edges, value, side="right")
            assert edges[cell - 1] == value
            assert edges[cell] == np.nextafter(value, np.inf)


def test_categories_are_texts_that_enough_rows_have():
    """19 rows are not enough, nor are 30 of 40,000; 40,000 rows make 40 the least."""
    texts = np.array(["a"] * 39_000 + ["b"] * 911 + ["c"] * 40 + ["d"] * 30 + ["e"] * 19, object)
    assert series_of(x=texts)["x", "category"].categories == ("a", "b", "c")
    assert series_of(x=np.array(["a"] * 20 + ["b"] * 19, object))["x", "category"].categories == ("a",)


def test_long_texts_have_lengths_and_registers_and_frequent_ones_are_categories():
    texts = np.array([f"text {i} {'x' * (i % 50)}" for i in range(1000)] + ["n/a"] * 100, object)
    found = series_of(x=texts)
    assert set(found) == {("x", "category"), ("x", "length"), ("x", "distinct")}
    assert found["x", "category"].categories == ("n/a",)
    found = series_of(x=np.array(["y" * 300] * 100, object))
    assert found["x", "category"].categories == ()
    assert "y" not in str(found["x", "length"].to_dict())


@pytest.mark.parametrize("rows", [0, 1, 3, 19])
def test_a_few_rows_have_a_layout_without_values(rows):
    found = series_of(x=np.arange(float(rows)), s=np.array(["a"] * rows, object), t=np.zeros((rows, 2)))
    assert all(not len(series.edges) and not series.categories for series in found.values())


def test_every_type_has_its_measures():
    ragged = np.empty(30, object)
    ragged[:] = [np.arange(i % 4) for i in range(30)]
    found = series_of(
        flag=np.arange(30) % 2 == 0,
        when=np.datetime64("2026-01-01", "us") + np.arange(30),
        raw=np.array([b"ab", None, b"c"] * 10, object),
        image=np.zeros((30, 2, 2, 3), np.uint8),
        words=ragged,
        gone=np.array([None] * 30, object),
        nan=np.full(30, np.nan),
        mixed=np.array([1, None, 2.5] * 10, object),
        odd=np.array([1, "a", b"c"] * 10, object),
    )
    measures = {
        name: {m for column, m in found if column == name} for name in ("flag", "when", "raw", "image", "words")
    }
    assert measures == {
        "flag": {"number"},
        "when": {"time"},
        "raw": {"size"},
        "image": {"mean", "deviation"},
        "words": {"mean", "deviation", "size"},
    }
    assert ("gone", "category") in found
    assert not len(found["nan", "number"].edges)
    assert ("mixed", "number") in found
    assert ("odd", "category") in found


def test_the_sample_is_of_all_rows_in_bounded_memory():
    """However many chunks: between one and two times as many rows as asked for, from the first to the last."""
    learner = Learner(sample_rows=100)
    for start in range(0, 10_000, 37):
        stop = min(10_000, start + 37)
        learner.add({"x": np.arange(start, stop)}, rows=stop - start)
    values = learner.values("x")
    assert 100 <= len(values) <= 200
    assert (values // 64).tolist() == list(range(157 if values[-1] >= 156 * 64 else 156))


def test_a_large_chunk_is_not_kept_whole():
    """A million rows at once: 8 MB as numbers, of which the sample has 200."""
    learner = Learner(sample_rows=100)
    for start in (0, 50, 1_000_050):
        chunk = np.arange(start, start + (1_000_000 if start else 50), dtype=np.float64)
        kept = weakref.ref(chunk)
        tracemalloc.start()
        learner.add({"x": chunk}, rows=len(chunk))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del chunk
        assert kept() is None
        assert peak < 1_000_000
    values = learner.values("x")
    assert 100 <= len(values) <= 200
    assert (values // 16_384).tolist() == list(range(len(values)))
