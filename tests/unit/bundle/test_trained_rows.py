"""How many rows two sets share, from a bounded sketch of one."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.bundle.trained_rows import SKETCH_ROWS, overlap, sketch


def hashes(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, size=size, dtype=np.uint64)


def test_a_small_set_is_kept_whole_and_counted_exactly():
    """3 of 4 test rows are among the training rows, one of them twice."""
    train = sketch(np.array([7, 5, 5, 2**64 - 1], dtype=np.uint64))

    assert train.tolist() == [5, 7, 2**64 - 1]
    assert overlap(train, [np.array([5, 5, 7], dtype=np.uint64), np.array([8], dtype=np.uint64)]) == 0.75


def test_a_large_set_is_estimated_from_its_smallest_hashes():
    """A fifth of the test rows was trained on; 262,144 training rows leave 65,536 hashes, a quarter.

    Of 50,000 test rows about 12,500 lie under it: a standard error of 0.4 / sqrt(12,500) = 0.0036.
    """
    train, test = hashes(0, 262_144), hashes(1, 50_000)
    test[:10_000] = train[:10_000]

    assert sketch(train).size == SKETCH_ROWS
    assert overlap(sketch(train), np.split(test, 10)) == pytest.approx(0.2, abs=4 * 0.0036)


def test_random_training_rows_give_an_estimate_too():
    """A fifth of 5,000 test rows was trained on; of 100,000 training rows 20,000 were hashed.

    About 200 of the test rows are found; the standard error is sqrt(0.2 / (0.2 * 5,000)) = 0.014.
    """
    train, test = hashes(0, 100_000), hashes(1, 5000)
    test[:1000] = train[:1000]
    hashed = np.random.default_rng(2).choice(train, 20_000, replace=False)

    assert overlap(sketch(hashed), [test], hashed_share=0.2) == pytest.approx(0.2, abs=4 * 0.014)
    assert overlap(sketch(train[:1000]), [test[:1000]], hashed_share=0.9) == 1.0


def test_no_test_rows_have_no_share():
    """Rather than a 0 that says there is no overlap."""
    assert np.isnan(overlap(np.array([1], dtype=np.uint64), [np.array([], dtype=np.uint64)]))
