"""Categories that were chosen by luck among many about as frequent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raymlops.monitor.chosen_categories import chosen_by_chance, rows_too_many
from raymlops.monitor.drift import RARER, judge
from raymlops.monitor.own_windows import by_rows
from raymlops.monitor.profiled import column_counts
from raymlops.profiles.count import profile_of
from raymlops.profiles.reference import Chunk, reference_of

WINDOWS, ROWS = 30, 1_000


def shops(number, rows, *, seed):
    rng = np.random.default_rng(seed)
    names = np.array([f"s{at:04d}" for at in range(number)], object)
    return {"shop": names[rng.integers(0, number, rows)]}


def reference(number):
    columns = shops(number, WINDOWS * ROWS, seed=0)
    return reference_of(lambda: [Chunk(columns, WINDOWS * ROWS)], rows=WINDOWS * ROWS, row_order="ordered")


def test_categories_near_the_fewest_rows_that_make_one_have_rows_too_many():
    """Of 100,000 rows that is 100: three are below 100 + 2 * 10, with 3 * 10 * sqrt(2 / pi); at D = 4 twice."""
    counts = np.array([98_880, 101, 110, 120, 789])
    assert rows_too_many(counts) == pytest.approx(30 * math.sqrt(2 / math.pi))
    assert rows_too_many(counts, dispersion=4.0) == pytest.approx(60 * math.sqrt(2 / math.pi))


def test_where_no_more_categories_fit_the_rarest_says_how_many_rows_make_one():
    """Of 15, the fewest that a layout has room for, each with 400 rows: 15 * 20 * sqrt(2 / pi)."""
    assert rows_too_many(np.array([400] * 15 + [9_000])) == pytest.approx(300 * math.sqrt(2 / math.pi))
    assert rows_too_many(np.array([400] * 14 + [9_000])) == 0


def test_nothing_is_chosen_where_nothing_is_left_out():
    """Nor where there are no categories."""
    assert (
        rows_too_many(np.array([20, 21, 0])) == rows_too_many(np.array([0, 0, 9])) == rows_too_many(np.array([9])) == 0
    )


@pytest.mark.parametrize("number", [300, 1_000])
def test_the_share_of_all_others_is_not_ranked_where_categories_were_chosen_by_luck(number):
    """Of 300 or 1,000 equally frequent shops windows without drift are not told apart by what is in no category."""
    known = reference(number)
    own = by_rows(known.blocks.rows, rows=ROWS)
    by_chance = chosen_by_chance(known.blocks, own)
    windows = [profile_of(shops(number, ROWS, seed=seed), known.layout) for seed in (1, 2)]
    columns, _ = column_counts(known.blocks, windows, by_chance=by_chance)
    others = len(known.layout.series[0].categories)
    meanings = [meaning.bins for meaning in columns[0].contrasts(own)[1]]
    assert by_chance == {"shop"}
    assert (others,) not in meanings
    assert others in meanings[-1]
    assert judge(columns, own).outcome == "ok"


def test_few_categories_are_all_there():
    """Of 50 shops none is left out by luck, and a free text beside them stays a contrast of its own."""
    known = reference(50)
    own = by_rows(known.blocks.rows, rows=ROWS)
    assert chosen_by_chance(known.blocks, own) == frozenset()
    columns = shops(50, WINDOWS * ROWS, seed=0)
    columns["shop"][::10] = [f"x{at}" for at in range(WINDOWS * ROWS // 10)]
    known = reference_of(lambda: [Chunk(columns, WINDOWS * ROWS)], rows=WINDOWS * ROWS, row_order="ordered")
    assert chosen_by_chance(known.blocks, own) == frozenset()


def test_new_texts_are_seen_beside_the_rarer_categories():
    """Nine in ten rows have a shop that nobody knew: all that is no common category is told to have moved."""
    known = reference(1_000)
    own = by_rows(known.blocks.rows, rows=ROWS)
    columns = shops(1_000, ROWS, seed=3)
    columns["shop"][np.arange(ROWS) % 10 > 0] = "new"
    windows = [profile_of(columns, known.layout)] * 2
    shop = column_counts(known.blocks, windows, by_chance={"shop"})[0][0]
    verdict = judge([shop], own)
    assert (verdict.outcome, verdict.columns[0].moved) == ("alarm", RARER)
