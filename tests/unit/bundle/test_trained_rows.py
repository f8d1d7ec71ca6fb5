"""How many rows two sets share, from a bounded sketch of one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raymlops.bundle.trained_rows import SKETCH_ROWS, Overlap, overlap, sketch


def hashes(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, size=size, dtype=np.uint64)


def test_a_small_set_is_kept_whole_and_counted_exactly():
    """3 of 4 test rows are among the training rows, one of them twice."""
    train = sketch(np.array([7, 5, 5, 2**64 - 1], dtype=np.uint64))

    assert train.tolist() == [5, 7, 2**64 - 1]
    assert overlap(train, [np.array([5, 5, 7], dtype=np.uint64), np.array([8], dtype=np.uint64)]).share == 0.75


def test_a_large_set_is_estimated_from_its_smallest_hashes():
    """A fifth of the test rows was trained on; 262,144 training rows leave 65,536 hashes, a quarter.

    Of 50,000 test rows about 12,500 lie under it: a standard error of 0.4 / sqrt(12,500) = 0.0036.
    """
    train, test = hashes(0, 262_144), hashes(1, 50_000)
    test[:10_000] = train[:10_000]

    assert sketch(train).size == SKETCH_ROWS
    assert overlap(sketch(train), np.split(test, 10)).share == pytest.approx(0.2, abs=4 * 0.0036)


def test_random_training_rows_give_an_estimate_too():
    """A fifth of 5,000 test rows was trained on; of 100,000 training rows 20,000 were hashed.

    About 200 of the test rows are found; the standard error is sqrt(0.2 / (0.2 * 5,000)) = 0.014.
    """
    train, test = hashes(0, 100_000), hashes(1, 5000)
    test[:1000] = train[:1000]
    hashed = np.random.default_rng(2).choice(train, 20_000, replace=False)

    assert overlap(sketch(hashed), [test], hashed_share=0.2).share == pytest.approx(0.2, abs=4 * 0.014)
    assert overlap(sketch(train[:1000]), [test[:1000]], hashed_share=0.9).share == 1.0


def test_no_test_rows_have_no_share():
    """Rather than a 0 that says there is no overlap."""
    assert np.isnan(overlap(np.array([1], dtype=np.uint64), [np.array([], dtype=np.uint64)]).share)


def test_what_a_whole_sketch_says_is_exact():
    """1 of 4 rows: a share of .25, without error, and surely no less."""
    found = overlap(np.array([1, 2], dtype=np.uint64), [np.array([1, 3, 4, 5], dtype=np.uint64)])

    assert (found.share, found.error, found.at_least()) == (0.25, 0.0, 0.25)


def test_an_estimate_has_its_error_and_a_bound():
    """50 of 100: .5 with an error of sqrt(.5 * .5 / 100) = .05; the bound is where 50 or more come up in 1 of 100."""
    found = Overlap(50, 100, whole=False)

    assert (found.share, found.error) == (0.5, pytest.approx(0.05))
    assert stats.binom.sf(49, 100, found.at_least(level=0.01)) == pytest.approx(0.01)


def test_a_single_equal_row_of_few_is_surely_nothing_much():
    """1 of 6 rows under the sketch is a share of .17, and may be chance: surely it is above .002 alone."""
    found = Overlap(1, 6, whole=False)

    assert found.share == pytest.approx(1 / 6)
    assert found.at_least() == pytest.approx(1 - 0.99 ** (1 / 6))
