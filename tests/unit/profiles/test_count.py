"""Counts add up exactly, and each value is in its cell."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.profiles.count import Counter, profile_of
from raymlops.profiles.distinct import estimate, registers
from raymlops.profiles.layout import ROWS, Layout, Series
from raymlops.profiles.measures import measured
from raymlops.profiles.profile import Profile

NUMBERS = Series("x", "number", np.array([0.0, 1.0, 2.0]))
TEXTS = Series("s", "category", categories=("a", "b"))
LAYOUT = Layout((NUMBERS, TEXTS, Series("s", "length", np.array([2.0])), Series("s", "distinct")))


def test_numbers_are_in_their_bins_and_what_is_no_number_is_beside_them():
    """-inf | below 0, [0, 1), [1, 2), from 2 on | inf | missing."""
    values = np.array([-np.inf, -1.0, -0.0, 0.5, 1.0, 2.0, 9.0, np.inf, np.nan, np.nan])
    series, counts = profile_of({"x": values}, LAYOUT).series("x")
    assert counts.tolist() == [1, 1, 2, 1, 2, 1, 2]
    assert counts[series.bins].tolist() == [1, 2, 1, 2]
    assert counts[series.missing] == 2


def test_categories_of_text_others_and_what_is_missing():
    texts = np.array(["a", "b", "b", "new", None, "x" * 10], object)
    for values in (
        texts,
        pa.array(texts),
        pa.chunked_array([texts[:2], texts[2:]]),
        pa.array(texts).dictionary_encode(),
    ):
        found = profile_of({"s": values}, LAYOUT)
        series, counts = found.series("s")
        assert counts.tolist() == [1, 2, 2, 1]
        assert (counts[series.bins].tolist(), counts[series.missing]) == ([1, 2, 2], 1)
        assert found.series("s", "length")[1].tolist() == [0, 3, 2, 0, 1]
        assert found.series("s", "distinct")[1].sum() == 5
        with pytest.raises(KeyError):
            found.series("x", "length")


rows = st.lists(
    st.tuples(
        st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 2.0])),
        st.one_of(st.none(), st.sampled_from(["a", "b", "c"]), st.text(max_size=5)),
    ),
    max_size=60,
)


def table(found):
    return {
        "x": np.array([x for x, _ in found], np.float64),
        "s": np.array([s for _, s in found] + [None], object)[:-1],
    }


@settings(max_examples=60, deadline=None)
@given(rows, rows)
def test_the_profile_of_two_tables_is_the_sum_of_theirs(one, two):
    """Exactly, cell by cell; every series counts each row once, but registers those with a value."""
    both = profile_of(table(one + two), LAYOUT)
    assert np.array_equal((profile_of(table(one), LAYOUT) + profile_of(table(two), LAYOUT)).counts, both.counts)
    assert both.rows == both.read == len(one + two)
    for series, cells in LAYOUT.placed():
        absent = sum(s is None for _, s in one + two) if series.measure == "distinct" else 0
        assert both.counts[cells].sum() == both.rows - absent


@settings(max_examples=30, deadline=None)
@given(rows, st.integers(1, 7))
def test_parts_counted_together_are_those_counted_one_by_one(found, parts):
    numbers = np.arange(len(found)) * 5 % parts
    counter = Counter(LAYOUT, windows=parts)
    counter.add(table(found), rows=len(found), window=numbers)
    for part in range(parts):
        alone = [row for row, number in zip(found, numbers, strict=True) if number == part]
        assert np.array_equal(counter.counts[part], profile_of(table(alone), LAYOUT).counts)


def test_a_table_larger_than_a_chunk():
    """150,000 rows, three chunks, in two halves."""
    values = np.arange(150_000) % 3
    counter = Counter(LAYOUT, windows=2)
    counter.add({"x": values}, rows=150_000, window=np.repeat([0, 1], 75_000))
    assert counter.counts[:, ROWS].tolist() == [75_000, 75_000]
    assert counter.profile().series("x")[1].tolist() == [0, 0, 50_000, 50_000, 50_000, 0, 0]


def test_a_column_that_is_not_there_is_not_counted():
    found = profile_of({"x": np.zeros(4), "unknown": np.zeros(4)}, LAYOUT)
    assert found.rows == 4
    assert found.series("s")[1].sum() == 0


def test_a_column_of_another_type_is_not_counted():
    """Numbers where there were texts have no category."""
    assert profile_of({"s": np.zeros(4)}, LAYOUT).series("s")[1].sum() == 0


def test_tensors_of_numpy_and_of_arrow_have_the_same_moments():
    """Means 1.5, none, 5; sizes 2, 0, 1; nested ones too."""
    layout = Layout(tuple(Series("t", m, np.array([1.5, 5.0])) for m in ("mean", "deviation", "size")))
    ragged = np.empty(3, object)
    ragged[:] = [np.array([1, 2]), np.zeros(0), np.array([5])]
    nested = pa.array([[[1], [2]], [[], []], [[5]]])
    for values in (ragged, pa.array([[1, 2], [], [5]]), pa.array([[1.0, 2.0], None, [5.0]]), nested, nested[0:3]):
        found = profile_of({"t": values}, layout, rows=3)
        assert found.series("t", "mean")[1].tolist() == [0, 0, 1, 1, 0, 1]
        assert found.series("t", "deviation")[1].tolist() == [0, 2, 0, 0, 0, 1]
        assert found.series("t", "size")[1].tolist() == [0, 2, 1, 0, 0, 0]
    square = profile_of({"t": np.array([[[1.0, 2.0]], [[np.nan, 0.0]], [[5.0, 5.0]]])}, layout)
    assert square.series("t", "mean")[1].tolist() == [0, 0, 1, 1, 0, 1]
    assert square.series("t", "size")[1].sum() == 0


def test_measures_that_somebody_else_has_taken():
    """Of bytes, the log has the size alone."""
    layout = Layout((Series("raw", "size", np.array([3.0])),))
    found = profile_of({"raw": {"size": np.array([1.0, 3.0, np.nan])}}, layout, rows=3)
    assert found.series("raw")[1].tolist() == [0, 1, 1, 0, 1]
    assert profile_of({"raw": np.array([b"a", b"abc", None], object)}, layout).counts.tolist() == found.counts.tolist()


def test_times_are_seconds():
    layout = Layout((Series("ts", "time", np.array([10.0])),))
    times = np.array(["1970-01-01T00:00:09.9", "1970-01-01T00:00:10", "NaT"], "datetime64[us]")
    for values in (times, times.astype("datetime64[ns]"), pa.array(times), pa.array(times, pa.timestamp("us", "UTC"))):
        assert profile_of({"ts": values}, layout).series("ts")[1].tolist() == [0, 1, 1, 0, 1]


def test_text_that_is_no_unicode_and_mixed_objects():
    texts = np.array(["a", "\ud800", 3, float("nan"), None], object)
    assert profile_of({"s": texts}, LAYOUT).series("s")[1].tolist() == [1, 0, 2, 2]


def test_weights_keep_the_sum_of_a_series():
    """Three rows that stand for 2.5 each and one for 1: 8.5, rounded 8; a bin of 2.5 is 2 or 3."""
    one = profile_of({"x": np.array([0.0, 1.0, 2.0]), "s": np.array(["a"] * 3, object)}, LAYOUT)
    other = profile_of({"x": np.array([0.0]), "s": np.array(["b"], object)}, LAYOUT)
    found = Profile.weighted({2.5: one, 1.0: other}, LAYOUT)
    assert found.rows == 8
    counts = found.series("x")[1]
    assert counts.sum() == 8
    assert np.abs(counts - [0, 0, 3.5, 2.5, 2.5, 0, 0]).max() <= 1
    assert np.array_equal(Profile.weighted({1.0: one}, LAYOUT).counts, one.counts)


def test_rows_of_mixed_weights_say_as_much_as_fewer():
    """Kish's effective size: 1,000 rows and 23 that stand for 1,000 each are 24^2 / 23 = 25, also after adding."""
    one, few, half = (profile_of({"x": np.zeros(rows)}, LAYOUT, rows=rows) for rows in (1000, 23, 500))
    assert Profile.weighted({1.0: one, 1000.0: few}, LAYOUT).read == 25
    assert (one + Profile.weighted({1000.0: few}, LAYOUT)).read == 25
    assert (one.read, Profile.weighted({10.0: one}, LAYOUT).read) == (1000, 1000)
    assert (Profile.weighted({10.0: one}, LAYOUT) + Profile.weighted({10.0: half}, LAYOUT)).read == 1500
    assert Profile.weighted({1e12: one}, LAYOUT).read > 0
    assert Profile.weighted({}, LAYOUT).read == 0


def test_profiles_on_different_layouts_do_not_add_up():
    other = Layout((Series("x", "number", np.array([0.0, 1.0, 3.0])),))
    with pytest.raises(ValueError, match="do not add up"):
        Counter(other).profile() + Counter(LAYOUT).profile()
    same = Counter(Layout(LAYOUT.series)).profile()
    assert (same + Counter(LAYOUT).profile()).rows == 0


def test_no_column_and_no_row():
    assert profile_of({}, Layout(())).counts.tolist() == [0, 0, 0]
    assert profile_of({"x": np.zeros(0), "s": np.zeros(0, object)}, LAYOUT).counts.sum() == 0


@pytest.mark.parametrize("number", [1, 10, 1000, 100_000])
def test_the_number_of_distinct_texts_is_about_right(number):
    """Repeated three times, in two parts that add; 9% is a standard error, 30% never."""
    texts = pa.array([f"text {i}" for i in range(number)])
    counts = sum(np.bincount(registers(texts), minlength=1152) for _ in range(3))
    assert abs(estimate(counts) / number - 1) < 0.3
    assert estimate(counts * 0) == 0
    assert estimate(counts * 0 + 1) == np.inf


def test_the_mean_of_a_vector_is_the_same_number_of_numpy_and_of_arrow():
    """Three shares that add up to 1 have a mean of a third, or the number beside it by the order of summation."""
    shares = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], size=2_000)
    logged = measured(pa.array([None, *shares.tolist()]))
    for measure, values in measured(shares).items():
        found = logged[measure][1:]
        assert found.equals(values) if measure == "category" else found.tolist() == values.tolist()
    assert np.isnan(logged["mean"][0])


def test_a_short_vector_is_counted_by_its_largest_element():
    """Of the probabilities of classes that is the answer; not of a matrix, nor where one is missing."""
    series = Series("p", "category", categories=("argmax 0", "argmax 2"))
    layout = Layout((series, Series("p", "mean", np.array([0.5]))))
    shares = [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1], [np.nan, 0.9, 0.1]]
    for values in (np.array(shares), pa.array(shares), pa.array([None, *shares[:4]])):
        assert profile_of({"p": values}, layout, rows=5).series("p", "category")[1].tolist() == [2, 1, 1, 1]
    for values in (np.array([[each] for each in shares]), pa.array([[1.0], [2.0, 3.0]]), np.zeros((5, 33))):
        assert "category" not in measured(values)


def test_rows_of_a_request_that_are_alike_say_less():
    """Two requests of two rows: all alike, r = 1 and 1 + 1 x 4 / 4 = 2; a standard error of sqrt(2 / 2) higher, 3."""
    layout = Layout((Series("n", "number", np.array([0.0])), Series("c", "category", categories=("a", "b"))))
    columns = {"n": np.array([-1.0, -1, 1, 1]), "c": np.array(["a", "a", "b", "b"], object)}
    counter = Counter(layout)
    counter.add(columns, rows=4, requests=np.array([0, 0, 1, 1]))
    alike = Profile.weighted({1.0: counter.profile()}, layout)
    assert alike.read == 4
    assert [alike.design_effect(at) for at in (0, 1)] == pytest.approx([3, 3])
    single = Counter(layout)
    single.add(columns, rows=4, requests=np.arange(4))
    assert [single.profile().design_effect(at) for at in (0, 1)] == [1, 1]
