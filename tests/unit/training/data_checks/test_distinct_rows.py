"""Which rows there are, and which two tables share, in bounded memory."""

import numpy as np
import pytest

from raymlops.training.data_checks.distinct_rows import DistinctRows


def distinct(*chunks, kept=1000):
    found = DistinctRows(kept=kept)
    for chunk in chunks:
        found.add(np.array(chunk, np.uint64))
    return found


def test_few_rows_are_counted_exactly():
    """Of 7 rows 5 are there more than once; of the other table's 4 rows 3 are in it."""
    one, other = distinct([5, 5, 9], [9, 9, 1, 3]), distinct([9, 1, 1, 8])
    assert (one.added, one.is_exact, one.repeated) == (7, True, 5 / 7)
    assert other.share_in(one) == 3 / 4
    assert one.share_in(other) == 4 / 7
    assert distinct().share_in(one) == distinct().repeated == 0


def test_order_does_not_count_and_how_often_does():
    """A shuffled copy is the same rows; one with a row twice is not."""
    assert distinct([3, 1], [2]).equals(distinct([1, 2, 3]))
    assert not distinct([1, 2, 3]).equals(distinct([1, 2, 3, 3]))
    many = range(2000)
    assert not distinct(many).equals(distinct(many)), "not known where not all are kept"


@pytest.mark.parametrize("chunks", [1, 7])
def test_of_many_rows_the_shares_are_estimates(chunks):
    """A fifth of the rows is shared and a tenth repeated: within five standard errors of 0.5 / sqrt(5,000), .035."""
    rng = np.random.default_rng(1)
    train = rng.integers(0, 2**64 - 1, 100_000, np.uint64)
    train[-5_000:] = train[:5_000]
    validation = rng.integers(0, 2**64 - 1, 50_000, np.uint64)
    validation[:10_000] = train[20_000:30_000]
    one = distinct(*np.array_split(train, chunks), kept=5_000)
    other = distinct(*np.array_split(validation, chunks), kept=5_000)
    assert not one.is_exact
    assert other.share_in(one) == pytest.approx(0.2, abs=0.035)
    assert one.repeated == pytest.approx(0.1, abs=0.035)
