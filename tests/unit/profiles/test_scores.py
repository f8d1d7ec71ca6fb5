"""Sums of products of scores are those of the rows, however these come."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from raymlops.profiles.count import CHUNK_ROWS, Counter, profile_of
from raymlops.profiles.file import read_references, write_references
from raymlops.profiles.layout import Layout, Series
from raymlops.profiles.profile import Profile
from raymlops.profiles.reference import Chunk, reference_of
from raymlops.profiles.scores import MOST_SCORES, Score, sums_of_pair

X = Score("x", "number", np.array([0.0, 1.0, 2.0]))
A = Score("s", "category", np.zeros(0), "a")
SERIES = (Series("x", "number", np.array([0.0, 1.0, 2.0])), Series("s", "category", categories=("a",)))
LAYOUT = Layout(SERIES, (X, A))


def test_scores_are_around_0_and_missing_values_are_there():
    """Below 0, [0, 1), [1, 2), from 2 on; a and others."""
    values = np.array([-np.inf, -1.0, 0.0, 1.0, 2.0, np.inf, np.nan])
    assert X.of(values, ()).tolist() == [-3, -3, -1, 1, 3, 3, 0]
    assert A.of(SERIES[1].cells_of(pa.array(["a", "b", None, "a"])), ("a",)).tolist() == [1, -1, 0, 1]
    assert (X.name, A.name) == ("x", "s=a")


def test_sums_are_of_each_score_and_of_each_two():
    """Three rows with the scores (-3, 1), (1, -1) and (0, 1): sums -2 and 1, squares 10 and 3, product -4."""
    found = profile_of({"x": np.array([-1.0, 1.5, np.nan]), "s": np.array(["a", "b", "a"], object)}, LAYOUT)
    sums = found.counts[LAYOUT.sums]
    assert sums.tolist() == [-2, 10, 1, -4, 3]
    assert sums[list(sums_of_pair(0, 1))].tolist() == [-2, 1, 10, 3, -4]
    assert sums[list(sums_of_pair(1, 0))].tolist() == [1, -2, 3, 10, -4]


def test_the_layout_of_a_bundle_without_scores_is_as_it_was():
    """Counts of hours name it by its digest."""
    plain = Layout(SERIES)
    assert plain.digest.startswith("13ae84185b33b2db")
    assert LAYOUT.size == plain.size + 5
    assert len({plain.digest, LAYOUT.digest, Layout(SERIES, (A, X)).digest, Layout(SERIES, (X,)).digest}) == 4


def test_sums_of_many_rows_are_exact_and_add_up_in_any_order():
    """Of more rows than are multiplied at a time, in parts one after the other and mixed."""
    rng = np.random.default_rng(0)
    rows = CHUNK_ROWS + 777
    columns = {"x": rng.normal(1, 1, rows), "s": np.array(["a", "b", None], object)[rng.integers(0, 3, rows)]}
    texts = SERIES[1].cells_of(pa.array(columns["s"]))
    scores = np.stack([np.ones(rows), X.of(columns["x"], ()), A.of(texts, ("a",))]).astype(np.int64)
    exact = (scores @ scores.T)[np.tril_indices(3)][1:]
    assert profile_of(columns, LAYOUT).counts[LAYOUT.sums].tolist() == exact.tolist()
    for window in (np.sort(rng.integers(0, 40, rows)), rng.integers(0, 40, rows)):
        counter = Counter(LAYOUT, windows=40)
        counter.add(columns, rows=rows, window=window)
        assert counter.profile().counts.tolist() == profile_of(columns, LAYOUT).counts.tolist()
        mine = {name: values[window == 7] for name, values in columns.items()}
        assert counter.counts[7].tolist() == profile_of(mine, LAYOUT).counts.tolist()


def test_a_column_that_is_not_there_has_no_part_in_sums():
    found = profile_of({"s": np.array(["a", "b"], object)}, LAYOUT).counts[LAYOUT.sums]
    assert found.tolist() == [0, 0, 0, 0, 2]


def test_rows_of_a_sample_count_by_their_weight():
    part = profile_of({"x": np.array([-1.0]), "s": np.array(["a"], object)}, LAYOUT)
    assert Profile.weighted({2.5: part}, LAYOUT).counts[LAYOUT.sums].tolist() == [-8, 22, 2, -8, 2]


def test_a_reference_scores_the_first_columns_and_the_commonest_categories(tmp_path):
    """A number, three categories of many, one of two; no times, and no column of one value. A file holds them."""
    rng = np.random.default_rng(0)
    rows = 4000
    columns = {
        "at": np.datetime64("2026-01-01", "us") + np.arange(rows),
        "one": np.array(["same"] * rows, object),
        "two": np.array(["m", "f"], object)[rng.integers(0, 2, rows)],
        "many": np.array([*"aaabbcccce"], object)[rng.integers(0, 10, rows)],
        "x": rng.normal(size=rows),
    }

    def found(**more):
        return reference_of(lambda: [Chunk(columns, rows)], rows=rows, row_order="ordered", **more)

    reference = found(scored=["x", "many", "two", "one", "at"])
    layout = reference.layout
    assert [score.name for score in layout.scores] == ["x", "many=a", "many=b", "many=c", "two=f"]
    assert len(layout.scores[0].edges) in range(7, 10)
    again = read_references(write_references({"features": replace(reference, influence={"x": 1.0})}))["features"]
    assert again.layout.digest == layout.digest
    assert np.array_equal(again.profile.counts, reference.profile.counts)
    assert np.array_equal(again.blocks.counts, reference.blocks.counts)
    assert (
        reference.blocks.counts[:, layout.sums].sum(axis=0).tolist() == reference.profile.counts[layout.sums].tolist()
    )
    assert found().layout.scores == ()
    many = {f"x{at}": columns["x"] for at in range(40)}
    wide = reference_of(lambda: [Chunk(many, rows)], rows=rows, scored=[*many])
    assert [score.column for score in wide.layout.scores] == [*many][:MOST_SCORES]


@pytest.mark.parametrize("values", [np.array([1.0, 1.0, 1.0, 5.0] * 100), np.arange(400) % 3.0, np.arange(400) ** 9.0])
def test_no_score_is_beyond_16(values):
    """Sums of 128 rows are exact in single precision then; of values that are all alike, few, or of any size."""
    (score,) = reference_of(lambda: [Chunk({"x": values}, 400)], rows=400, scored=["x"]).layout.scores
    assert 1 <= len(score.edges) <= 16
