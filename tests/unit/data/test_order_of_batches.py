"""Global batches do not depend on the number of workers, and shares make the exact mean."""

from __future__ import annotations

import itertools
import random
from math import ceil
from typing import Literal

import numpy as np
import pytest
import torch

from raymlops.config.train import TrainSection
from raymlops.data.order import (
    derived_seed,
    global_batches,
    leaves_single_rows,
    micro_batches,
    seed_all,
    seed_step,
)


def test_an_epoch_holds_every_row_once() -> None:
    """10 rows in batches of 4 are 4 + 4 + 2 rows, each row once."""
    batches = list(global_batches(10, batch_size=4, seed=0, epoch=1))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(torch.cat(batches).tolist()) == list(range(10))


def test_order_follows_seed_and_epoch() -> None:
    """The same seed and epoch give the same order; either one alone changes it."""
    orders = {
        key: next(global_batches(50, batch_size=50, seed=key[0], epoch=key[1])) for key in [(0, 1), (0, 2), (1, 1)]
    }
    assert torch.equal(orders[0, 1], next(global_batches(50, batch_size=50, seed=0, epoch=1)))
    assert not torch.equal(orders[0, 1], orders[0, 2])
    assert not torch.equal(orders[0, 1], orders[1, 1])


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 12])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize("least_rows", [1, 2])
def test_weighted_means_average_to_the_mean_of_the_batch(
    rows: int, world: int, pieces: int, least_rows: Literal[1, 2]
) -> None:
    """What DDP averages over ranks, each rank's pieces added with their weights, is the mean over the global batch."""
    values = torch.arange(100, dtype=torch.float64) ** 2
    indices = torch.arange(20, 20 + rows)
    ranks = [
        micro_batches(indices, rank=rank, world=world, pieces=pieces, least_rows=least_rows) for rank in range(world)
    ]
    averaged = sum(sum(values[part].mean() * weight for part, weight in parts) for parts in ranks) / world
    assert float(averaged) == pytest.approx(float(values[indices].mean()), rel=1e-12)
    used = sorted(index for parts in ranks for part, weight in parts if weight for index in part.tolist())
    assert used == indices.tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("pieces", [1, 2, 3, 8])
def test_no_piece_has_a_single_row_where_there_are_two(world: int, pieces: int) -> None:
    """For each size that the last of the batches of 256 may have, on every rank: exact, and hardly larger."""
    full = TrainSection(batch_size=256, num_workers=world, accumulate=pieces).micro_batch_rows
    assert full == ceil(ceil(256 / world) / pieces)
    for rows in range(1, 257):
        ranks = [
            micro_batches(torch.arange(rows), rank=rank, world=world, pieces=pieces, least_rows=2)
            for rank in range(world)
        ]
        found = [(len(part), weight) for parts in ranks for part, weight in parts]
        assert len({len(parts) for parts in ranks}) == 1
        assert sum(size for size, weight in found if weight) == rows
        assert all(weight in (0.0, size * world / rows) for size, weight in found)
        assert all(2 <= size <= max(full, 3) for size, _ in found) or rows == 1


def test_single_rows_are_kept_unless_asked_otherwise() -> None:
    """Nine rows on eight ranks: two on the first, one on each other; in pairs, the last four ranks fill up."""
    nine = torch.arange(9)
    single = [micro_batches(nine, rank=rank, world=8, pieces=1) for rank in range(8)]
    assert [[len(part) for part, _ in parts] for parts in single] == [[2]] + [[1]] * 7
    paired = [micro_batches(nine, rank=rank, world=8, pieces=1, least_rows=2) for rank in range(8)]
    assert [[(len(part), weight) for part, weight in parts] for parts in paired] == [
        [(3, 3 * 8 / 9)],
        *[[(2, 2 * 8 / 9)]] * 3,
        *[[(2, 0.0)]] * 4,
    ]


def test_derived_seeds_of_neighbours_differ() -> None:
    """Seeds of neighbouring epochs and ranks are unrelated, and fit torch's 64 signed bits."""
    seeds = {derived_seed(0, epoch, rank) for epoch in range(20) for rank in range(20)}
    assert len(seeds) == 400
    assert max(seeds) < 2**63


def test_single_rows_are_foreseen() -> None:
    """As they are cut, on any rank; without any, pieces of two rows at least are the same pieces."""
    for rows, world, pieces in itertools.product(range(1, 30), range(1, 6), range(1, 6)):
        plain = [micro_batches(torch.arange(rows), rank=rank, world=world, pieces=pieces) for rank in range(world)]
        single = any(len(piece) == 1 for rank in plain for piece, _ in rank)
        assert leaves_single_rows(rows, world=world, pieces=pieces) is single
        if not single:
            paired = [
                micro_batches(torch.arange(rows), rank=rank, world=world, pieces=pieces, least_rows=2)
                for rank in range(world)
            ]
            assert [[(p.tolist(), w) for p, w in rank] for rank in paired] == [
                [(p.tolist(), w) for p, w in rank] for rank in plain
            ]


def test_a_step_draws_the_same_whether_its_seed_is_derived_alone_or_with_others() -> None:
    """Steps in turn, back and far ahead, on two ranks: torch, ``random`` and ``numpy.random``."""
    device = torch.device("cpu")

    def drawn() -> tuple[float, float, float]:
        return float(torch.rand(())), random.random(), float(np.random.random())  # noqa: NPY002

    for step, rank in itertools.product((0, 1, 63, 64, 65, 2, 10**6), (0, 1)):
        seed_all(7, step, rank, device=device)
        alone = drawn()
        seed_step(7, step, rank, device=device)
        assert drawn() == alone


@pytest.mark.parametrize("skip", [0, 1, 63, 64, 100, 149, 150, 151])
def test_skipped_batches_leave_the_rest_of_the_epoch(skip: int) -> None:
    """299 rows in batches of 2 are 150 batches; a run that resumes after all of them has none left."""
    epoch = [batch.tolist() for batch in global_batches(299, batch_size=2, seed=0, epoch=1)]
    rest = [batch.tolist() for batch in global_batches(299, batch_size=2, seed=0, epoch=1, skip=skip)]
    assert len(epoch) == 150
    assert rest == epoch[skip:]
