"""Profiles as the verdict takes them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from raymlops.monitor.drift import UNKNOWN, judge
from raymlops.monitor.own_windows import by_rows
from raymlops.monitor.profiled import column_counts, read_counts, slice_counts
from raymlops.profiles.count import profile_of
from raymlops.profiles.profile import Profile
from raymlops.profiles.reference import Chunk, reference_of
from raymlops.profiles.slices import Slice

ROWS = 40_000


def table(rows, *, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows) + shift
    x[::100] = np.nan
    x[::200] = np.inf
    letters = np.array(["a", "b", None], object)
    return {
        "x": x,
        "s": letters[rng.integers(0, 3, rows)],
        "words": rng.normal(size=(rows, 2)),
        "at": np.datetime64("2026-01-01", "us") + np.arange(rows),
    }


@pytest.fixture(scope="module")
def reference():
    columns = table(ROWS, seed=0)
    return reference_of(lambda: [Chunk(columns, ROWS)], rows=ROWS, row_order="ordered")


def test_columns_are_counts_by_bin(reference):
    """Every row is in a bin or missing, infinities too; times are there or missing."""
    window = profile_of(table(1000, seed=1), reference.layout)
    columns, refused = column_counts(reference.blocks, [window, window], influence={"x": 0.5})
    assert refused == {}
    names = ["x", "s", "words", "words (mean)", "words (deviation)", "at"]
    assert [column.name for column in columns] == names
    for column in columns:
        assert (column.blocks.sum(axis=1) + column.nulls).tolist() == reference.blocks.rows.tolist()
        assert (column.windows.sum(axis=1) + column.window_nulls).tolist() == [1000, 1000]
    x, s = columns[:2]
    assert x.nulls.sum() == ROWS // 100
    assert len(x.edges) == x.blocks.shape[1] + 1
    assert (x.influence, s.influence) == (0.5, None)
    assert s.labels == ("a", "b", "other")
    assert s.windows[0].sum() == (table(1000, seed=1)["s"] != None).sum()  # noqa: E711 - element by element


def test_a_time_that_is_missing_is_seen_and_one_that_moved_on_is_not(reference):
    """Two windows of a later year are as usual; one in which all times are missing is an alarm."""
    own = by_rows(reference.blocks.rows, rows=1000)
    later = {**table(1000, seed=1), "at": np.datetime64("2027-01-01", "us") + np.arange(1000)}
    gone = {**later, "at": np.full(1000, np.datetime64("NaT", "us"))}
    windows = [profile_of(columns, reference.layout) for columns in (later, gone)]
    (at,) = (one for one in column_counts(reference.blocks, windows)[0] if one.name == "at")
    assert (at.blocks.shape[1], at.edges, at.window_nulls.tolist()) == (1, None, [0, 1000])
    assert judge(column_counts(reference.blocks, windows[:1] * 2)[0], own).outcome == "ok"
    verdict = judge(column_counts(reference.blocks, windows)[0], own)
    assert (verdict.outcome, verdict.flagged) == ("alarm", ("at",))


def test_the_verdict_names_what_moved(reference):
    """A shift of half a standard deviation in two windows running."""
    own = by_rows(reference.blocks.rows, rows=1000)
    windows = [profile_of(table(1000, seed=seed, shift=0.5), reference.layout) for seed in (1, 2)]
    found = judge(column_counts(reference.blocks, windows)[0], own)
    assert (found.outcome, found.flagged) == ("alarm", ("x",))
    windows = [profile_of(table(1000, seed=seed), reference.layout) for seed in (3, 4)]
    assert judge(column_counts(reference.blocks, windows)[0], own).outcome == "ok"


@pytest.mark.parametrize(("value", "where"), [(3.0, "2 to 4"), (-5.0, "below 0"), (99.0, "above 8")])
def test_a_value_that_training_never_has_is_named(value, where):
    """In 4% of 1,000 rows of one of five even numbers, in two windows running; one row of it is none."""
    rng = np.random.default_rng(1)
    even = {"x": rng.choice([0.0, 2.0, 4.0, 6.0, 8.0], ROWS), "y": rng.normal(size=ROWS)}
    found = reference_of(lambda: [Chunk(even, ROWS)], rows=ROWS, row_order="ordered")
    own, said = by_rows(found.blocks.rows, rows=1000), []
    for number in (40, 1):
        windows = []
        for seed in (1, 2):
            rng = np.random.default_rng([3, seed])
            x = rng.choice([0.0, 2.0, 4.0, 6.0, 8.0], 1000)
            x[:number] = value
            windows.append(profile_of({"x": x, "y": rng.normal(size=1000)}, found.layout))
        said.append(judge(column_counts(found.blocks, windows)[0], own))
    assert [one.outcome for one in said] == ["alarm", "ok"]
    assert f"x (share of values {where}, which training hardly has, +" in said[0].reason


def test_rows_in_many_bins_vanish_in_none_where_the_sample_changed(reference):
    """200 rows of weight 1 over some 50 bins beside 30 of weight 100: 32 were read, of which each series has all."""
    layout = reference.layout
    parts = {1.0: profile_of(table(200, seed=5), layout), 100.0: profile_of(table(30, seed=6), layout)}
    window = Profile.weighted(parts, layout)
    assert (window.rows, window.read) == (3200, 34)
    counts = read_counts(window)
    assert {int(counts[cells].sum()) for series, cells in layout.placed() if series.missing is not None} == {34}


def test_a_window_of_a_sample_counts_as_the_rows_that_were_read(reference):
    """1,000 rows that stand for 10 each, and 500 for 1: as much as 10,500^2 / 100,500 = 1,097 rows."""
    parts = {10.0: table(1000, seed=1), 1.0: table(500, seed=2)}
    window = Profile.weighted(
        {weight: profile_of(columns, reference.layout) for weight, columns in parts.items()}, reference.layout
    )
    columns, refused = column_counts(reference.blocks, [window])
    assert refused == {}
    assert abs(columns[0].windows.sum() + columns[0].window_nulls.sum() - 1097) < 130  # half a row a cell
    assert columns[1].windows.sum() + columns[1].window_nulls.sum() == pytest.approx(1097, abs=2)


def test_a_column_that_was_redacted_is_refused_with_the_reason(reference):
    columns = table(1000, seed=1)
    window = profile_of({name: columns[name] for name in ("x", "words", "at")}, reference.layout, rows=1000)
    found, refused = column_counts(reference.blocks, [window])
    assert [column.name for column in found] == ["x", "words", "words (mean)", "words (deviation)", "at"]
    assert refused == {"s": "100% of the rows lack it: it was redacted for a while, or is of another type"}


def test_a_window_on_another_layout_is_refused(reference):
    other = reference_of(lambda: [Chunk(table(100, seed=5), 100)], rows=100).profile
    with pytest.raises(ValueError, match="another layout"):
        column_counts(reference.blocks, [other])


@pytest.fixture(scope="module")
def sliced():
    columns = table(ROWS, seed=0)
    slices = [Slice("s", "a"), Slice("rare", True)]
    columns["rare"] = np.arange(ROWS) % 20 == 0
    return reference_of(lambda: [Chunk(columns, ROWS)], rows=ROWS, row_order="ordered", slices=slices)


def test_columns_of_a_slice_are_named_by_it(sliced):
    """And its own column has one value, of which nothing is judged."""
    own, chosen = by_rows(sliced.blocks.rows, rows=1000), Slice("s", "a")
    rows = table(1000, seed=1)
    inside = rows["s"] == "a"
    window = profile_of({**{name: each[inside] for name, each in rows.items()}}, sliced.layout)
    found, refused = slice_counts(chosen, sliced.slice_blocks[chosen], [window, window], own, influence={"x": 0.5})
    assert refused == {"rare[s=a]": "100% of the rows lack it: it was redacted for a while, or is of another type"}
    assert [(one.name, one.slice) for one in found[:2]] == [("x[s=a]", "s=a"), ("s[s=a]", "s=a")]
    assert (found[0].influence, found[0].blocks.sum() + found[0].nulls.sum()) == (0.5, sliced.slices[chosen].rows)
    assert "s[s=a]" not in {one.column for one in judge(found, own).columns}


def test_a_slice_of_few_rows_is_refused_with_their_number(sliced):
    """In the window, or in the reference: 5% of 1,000 rows are 50 of an own window, in groups of 20 or more."""
    own = by_rows(sliced.blocks.rows, rows=1000)
    for chosen, rows, said in (
        (Slice("s", "a"), 34, "34 rows in this window, 100 are needed"),
        (Slice("rare", True), 200, "[45][0-9] rows in the median own window, 100 are needed"),
    ):
        window = profile_of({**table(rows, seed=1), "rare": np.ones(rows, bool)}, sliced.layout)
        found, refused = slice_counts(chosen, sliced.slice_blocks[chosen], [window], own)
        assert (found, list(refused)) == ([], [chosen.name])
        assert re.fullmatch(said, refused[chosen.name])


def test_a_window_without_rows_before_that_of_a_slice_lacks_nothing(sliced):
    """No column was redacted where there is no row."""
    own, chosen = by_rows(sliced.blocks.rows, rows=1000), Slice("s", "a")
    known = {**table(1000, seed=1), "rare": np.arange(1000) % 20 == 0}
    known = {name: each[known["s"] == "a"] for name, each in known.items()}
    empty, window = profile_of({}, sliced.layout), profile_of(known, sliced.layout)
    found, refused = slice_counts(chosen, sliced.slice_blocks[chosen], [empty, window], own)
    assert refused == {}
    assert judge(found, own).outcome in {"ok", "warn"}


def test_of_probabilities_the_answer_is_judged_and_not_the_rounding_of_their_mean():
    """Their mean is a third whatever they say: that another class is the largest is seen in the share of that class."""

    def said(rows, *, seed, roll=0):
        logits = np.random.default_rng(seed).normal(size=(rows, 3)) * 0.5 + np.array([2.0, 0.0, -1.0])
        shares = np.exp(logits)
        return {"p": np.roll(shares / shares.sum(axis=1, keepdims=True), roll, axis=1)}

    columns = said(ROWS, seed=0)
    found = reference_of(lambda: [Chunk(columns, ROWS)], rows=ROWS, row_order="ordered")
    assert len(found.layout.series[1].edges) > 2
    own = by_rows(found.blocks.rows, rows=1000)
    usual = [profile_of(said(1000, seed=seed), found.layout) for seed in (1, 2)]
    counts = {one.name: one for one in column_counts(found.blocks, usual)[0]}
    assert counts["p (mean)"].blocks.shape[1] == 1
    assert counts["p (deviation)"].blocks.shape[1] > 100
    assert judge([*counts.values()], own).outcome == "ok"
    other = [profile_of(said(1000, seed=seed, roll=1), found.layout) for seed in (1, 2)]
    verdict = judge(column_counts(found.blocks, other)[0], own)
    assert (verdict.outcome, verdict.flagged) == ("alarm", ("p",))
    assert verdict.columns[0].moved.startswith("share of argmax ")


def test_a_category_that_is_called_other_is_told_from_all_unknown_texts():
    """It vanished, and texts that training has not came: each has a name of its own."""
    names = np.array(["main", "other"] * (ROWS // 2), object)
    found = reference_of(lambda: [Chunk({"tariff": names}, ROWS)], rows=ROWS, row_order="ordered")
    own = by_rows(found.blocks.rows, rows=1000)
    table = {"tariff": np.array(["main", "x"] * 500, object)}
    columns, _ = column_counts(found.blocks, [profile_of(table, found.layout)] * 2)
    assert columns[0].labels == ("main", "other", UNKNOWN)
    (tariff,) = judge(columns, own).columns
    assert (tariff.new, tariff.vanished) == ((UNKNOWN,), ("other",))
    assert tariff.moved in {"share of other", f"share of {UNKNOWN}"}
    assert tariff.histogram.labels.count("other") == 1
