"""Rows in groups are drawn once an epoch, in an order that keeps few groups open."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from raymlops.data.order import windowed_batches

GROUPS = np.array([5, 1, 7, 3, 20, 4], dtype=np.int64)


def _batches(groups: np.ndarray = GROUPS, **options: int) -> list[list[int]]:
    return [
        batch.tolist()
        for batch in windowed_batches(
            groups, **{"window_rows": 9, "batch_size": 6, "seed": 0, "epoch": 1, "skip": 0, **options}
        )
    ]


@pytest.mark.parametrize("batch_size", [1, 6, 7, 40, 100])
@pytest.mark.parametrize("window_rows", [1, 9, 1000])
def test_an_epoch_holds_every_row_once(batch_size: int, window_rows: int) -> None:
    """Whatever the sizes, all 40 rows come once, and only the last batch is smaller."""
    batches = _batches(batch_size=batch_size, window_rows=window_rows)
    assert sorted(row for batch in batches for row in batch) == list(range(40))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}


@pytest.mark.parametrize("window_rows", [1, 9, 1000])
def test_what_is_skipped_does_not_change_the_rest(window_rows: int) -> None:
    """An epoch that goes on at any batch gives the batches that were left."""
    whole = _batches(window_rows=window_rows)
    for skip in range(len(whole) + 1):
        assert _batches(window_rows=window_rows, skip=skip) == whole[skip:]


def test_order_follows_seed_and_epoch() -> None:
    """The same seed and epoch give the same order; either one alone changes it."""
    assert _batches() == _batches()
    assert _batches() != _batches(epoch=2)
    assert _batches() != _batches(seed=1)


def test_few_groups_are_open_at_a_time() -> None:
    """100 groups of 10 rows, windows of 50: at any time the rows come from one window, so each group is read once."""
    groups = np.full(100, 10, dtype=np.int64)
    drawn = [row // 10 for batch in _batches(groups, window_rows=50, batch_size=7) for row in batch]
    for start in range(0, 1000, 50):
        assert len(set(drawn[start : start + 50])) == 5


def test_rows_are_shuffled_inside_a_window_and_windows_are_shuffled() -> None:
    """One window of all rows is a permutation of them; single groups come in another order than they lie."""
    assert _batches(window_rows=1000, batch_size=40)[0] != list(range(40))
    groups = np.full(30, 2, dtype=np.int64)
    assert [batch[0] // 2 for batch in _batches(groups, window_rows=2, batch_size=2)] != list(range(30))


def test_a_billion_rows_are_ordered_lazily() -> None:
    """The first batch, and one from the middle, come at once and without an order of all rows."""
    groups = np.full(10_000, 100_000, dtype=np.int64)
    started = time.process_time()
    for skip in (0, 500_000):
        batch = next(windowed_batches(groups, window_rows=300_000, batch_size=1000, seed=0, epoch=1, skip=skip))
        assert batch.dtype == torch.int64
        assert len(set((batch // 100_000).tolist())) <= 3
    assert time.process_time() - started < 5
