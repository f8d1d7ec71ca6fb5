"""Which columns are judged by the same own windows. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from raymlops.lifecycle.watch.parts import ColumnNames, parts
from raymlops.profiles.layout import Layout, Series
from raymlops.profiles.scores import Score
from raymlops.profiles.slices import Slice
from raymlops.state.watch.incidents import Baseline

DAY_S = 86_400.0
FIRST = datetime(1970, 1, 11, tzinfo=UTC)
"""The window of this day has place 10."""
EDGES = np.array([0.0, 1.0, 2.0])


@pytest.fixture
def names():
    """Return those of three inputs, their slice of AA, and their three pairs."""
    series = tuple(Series(name, "number", EDGES) for name in "abc")
    scores = tuple(Score(name, "number", EDGES) for name in "abc")
    return ColumnNames(Layout(series, scores), [Slice("carrier", "AA")], between=True)


def baseline(columns, *, days=0):
    """Return that some columns are normal since so many days after the first."""
    start = FIRST + timedelta(days=days)
    return Baseline("m", "inputs", 0, start, columns, "a test", "somebody", start)


def split(names, baselines=(), skewed=None):
    """Return the names and the first place of each part."""
    found = parts(names, baselines, skewed, window_s=DAY_S)
    return [({*part.only}, part.first) for part in found]


def test_without_baselines_all_columns_are_judged_against_training(names):
    """Three columns, each in the slice too, and three pairs."""
    every = {"a", "b", "c", "a[carrier=AA]", "b[carrier=AA]", "c[carrier=AA]", "a and b", "a and c", "b and c"}
    assert split(names) == [(every, None)]


def test_a_column_is_judged_by_the_newest_baseline_that_names_it(names):
    """``a`` was said to be normal twice: the older baseline is left with ``b``, and training with ``c``."""
    found = split(names, [baseline(("a",), days=5), baseline(("a", "b"))])
    singles = [({name for name in only if " and " not in name and "[" not in name}, first) for only, first in found]
    assert singles == [({"a"}, 15), ({"b"}, 10), ({"c"}, None)]


def test_a_pair_is_judged_by_the_baseline_of_either_column(names):
    """Pairs with ``a`` are of its part: the next one is without it, and so without them."""
    (first, second) = parts(names, [baseline(("a",))], None, window_s=DAY_S)
    assert not second.only & first.only
    assert (first.without, second.without) == (frozenset(), first.only)


def test_a_slice_goes_with_its_column_and_can_be_named_alone(names):
    """Whoever acknowledges a column does so in all slices, and of a slice the whole column stays."""
    (column, _), *_ = split(names, [baseline(("a",))])
    assert {"a", "a[carrier=AA]"} <= column
    (alone, _), (others, _) = split(names, [baseline(("a[carrier=AA]",))])
    assert alone == {"a[carrier=AA]"}
    assert "a" in others


def test_skewed_columns_come_after_baselines(names):
    """What a person said of a column holds, whatever was served first."""
    found = list(parts(names, [baseline(("a",))], (["a", "b"], 3), window_s=DAY_S))
    assert [(part.told, part.first) for part in found] == [(("a",), 10), (("b",), 3), (None, None)]


def test_columns_with_one_baseline_are_one_part(names):
    """Each part costs a share of the level: what was acknowledged with one start, and skew since then, is one."""
    found = split(names, [baseline(("a",)), baseline(("b",), days=5), baseline(("c",))], (["b"], 10))
    singles = [({name for name in only if " and " not in name and "[" not in name}, first) for only, first in found]
    assert singles == [({"a", "c"}, 10), ({"b"}, 15)]


def test_after_a_baseline_of_all_columns_there_is_no_other_part(names):
    """Neither older baselines, nor skew, nor training."""
    found = split(names, [baseline(("a",), days=5), baseline(None), baseline(("b",))], (["c"], 3))
    assert [first for _, first in found] == [15, 10]
    assert {"b", "c"} <= found[1][0]
