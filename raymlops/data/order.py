"""The order of rows in an epoch, and each rank's share of a global batch.

Pure except for torch's generator. The order depends on seed and epoch alone, so the sequence of global batches is the
same for any number of workers.

Rows in row groups are shuffled in windows: groups are permuted, consecutive ones form windows that fit in memory, and
rows are permuted within a window. Every row is drawn once, each group is decoded once, and rows from distant parts of
the files are mixed; rows of two windows share a batch only where the windows meet. Only one window's row numbers exist
at a time.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Rows = npt.NDArray[np.int64]


EVALUATION = 1
"""Follows seed, step and rank in the seed of what an evaluation draws."""


def derived_seed(*parts: int) -> int:
    """Return a 63-bit seed from several numbers, uncorrelated for neighbouring ones."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


def seed_all(*parts: int, device: torch.device) -> None:
    """Seed torch, Python's ``random`` and ``numpy.random`` on this rank."""
    _seed_generators(derived_seed(*parts), device=device)


def seed_step(seed: int, step: int, rank: int, *, device: torch.device) -> None:
    """Seed as ``seed_all(seed, step, rank)`` does, faster for steps in turn."""
    _seed_generators(_step_seeds(seed, step // _BLOCK, rank)[step % _BLOCK], device=device)


_BLOCK = 64
"""Steps prepared at a time: a seed then takes 5 us, and 40 between two steps, which evict numpy's code from caches."""


@lru_cache(maxsize=8)
def _step_seeds(seed: int, block: int, rank: int) -> list[int]:
    return [derived_seed(seed, step, rank) for step in range(block * _BLOCK, (block + 1) * _BLOCK)]


def _seed_generators(seed: int, *, device: torch.device) -> None:
    # torch.manual_seed also notes a stack trace for each kind of device that is not in use: 0.1 to 0.6 ms.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)  # noqa: NPY002 - the generator that datasets draw from by default


def seed_start(seed: int) -> None:
    """Seed the same generators for what is drawn before the first step: first weights, above all."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the generator that libraries draw from by default


def evenly_spread(rows: int, *, most: int) -> torch.Tensor:
    """Return the numbers (int64) of at most so many rows, evenly spread, the first and the last among them."""
    return torch.linspace(0, rows - 1, min(most, rows), dtype=torch.float64).round().long()


def global_batches(rows: int, *, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[torch.Tensor]:
    """Yield the row indices of an epoch's global batches but the first ``skip``; the last one holds what remains."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(derived_seed(seed, epoch)))
    left = order[skip * batch_size :]
    # Batches of a block are cut in one call, and no more of them exist at a time.
    for block in torch.split(left, _BLOCK * batch_size) if len(left) else ():
        yield from torch.split(block, batch_size)


def leaves_single_rows(rows: int, *, world: int, pieces: int) -> bool:
    """Return whether any rank has a micro-batch of a single row in a global batch of ``rows``.

    The smallest share has ``rows // world`` rows, and is cut into as many pieces as the largest one.
    """
    return rows // world < 2 * min(pieces, -(-rows // world))


def micro_batches(
    indices: torch.Tensor, *, rank: int, world: int, pieces: int, least_rows: Literal[1, 2] = 1
) -> list[tuple[torch.Tensor, float]]:
    """Return this rank's micro-batches of a global batch, each with its weight; every rank gets equally many.

    A rank takes every ``world``-th row, in at most ``pieces`` pieces. The loss of a piece is a mean over
    its rows, and gradients are averaged over ranks, so with

        weight = rows of the piece * world / rows of the global batch

    the averaged gradient is the exact mean over the global batch, also where shares are uneven. A rank with fewer rows
    than pieces fills up with two rows at weight 0: with sharded parameters every forward pass is an exchange that
    all ranks must take part in.

    With ``least_rows`` 2, which batch normalisation may need, no piece has a single row unless the global batch has:
    rows are shared by fewer ranks and cut into fewer pieces, of three rows at most where they would have been two. The
    weights are made by the same formula, so the mean is as exact.
    """
    if world == pieces == 1:
        return [(indices, 1.0)]
    # Ranks 0 to sharing - 1 take rows; all of them do where there are enough.
    sharing = min(world, max(1, len(indices) // least_rows))
    most = -(-len(indices) // sharing)
    count = min(pieces, max(1, most // least_rows))
    share = indices[rank::sharing] if rank < sharing else indices[:0]
    parts = share.tensor_split(min(count, max(1, len(share) // least_rows))) if len(share) else ()
    weighted = [(part, len(part) * world / len(indices)) for part in parts]
    return weighted + [(indices[:2], 0.0)] * (count - len(weighted))


_GROUPS, _ROWS = 1, 2
"""Keep the seeds of the two permutations apart."""


def windowed_batches(
    group_rows: Rows, *, window_rows: int, batch_size: int, seed: int, epoch: int, skip: int = 0
) -> Iterator[torch.Tensor]:
    """Yield the row indices of each global batch of an epoch but the first ``skip``; the last holds what remains.

    Row numbers count through the groups in their given order. A window holds as many groups as stay within
    ``window_rows`` together, at least one. Windows that are skipped cost nothing.
    """
    ends = np.cumsum(group_rows)
    order, windows = _in_windows(group_rows, window_rows=window_rows, seed=seed, epoch=epoch)
    position = skip * batch_size
    done = 0
    rest = torch.empty(0, dtype=torch.int64)
    for number, (first, last) in enumerate(windows):
        groups = order[first:last]
        rows = int(group_rows[groups].sum())
        done += rows
        if done <= position:
            continue
        left_out = max(0, position - (done - rows))
        numbers = np.concatenate([np.arange(ends[group] - group_rows[group], ends[group]) for group in groups])
        drawn = torch.from_numpy(numbers)[torch.from_numpy(_permutation(rows, seed, epoch, number, _ROWS))]
        pending = torch.cat([rest, drawn[left_out:]])
        whole = len(pending) // batch_size * batch_size
        yield from (pending[start : start + batch_size] for start in range(0, whole, batch_size))
        rest = pending[whole:].clone()
    if len(rest):
        yield rest


def window_numbers(group_rows: Rows, *, window_rows: int, seed: int, epoch: int) -> Rows:
    """Return the number of each group's window in the order of ``windowed_batches``."""
    order, windows = _in_windows(group_rows, window_rows=window_rows, seed=seed, epoch=epoch)
    numbers = np.empty(len(group_rows), dtype=np.int64)
    for number, (first, last) in enumerate(windows):
        numbers[order[first:last]] = number
    return numbers


def _in_windows(
    group_rows: Rows, *, window_rows: int, seed: int, epoch: int
) -> tuple[npt.NDArray[Any], list[tuple[int, int]]]:
    """Return the order of groups in an epoch, and the bounds of its windows in that order."""
    order = _permutation(len(group_rows), seed, epoch, 0, _GROUPS)
    return order, _windows(group_rows[order], window_rows=window_rows)


def _windows(rows: Rows, *, window_rows: int) -> list[tuple[int, int]]:
    """Return the bounds of windows of at most ``window_rows`` rows, or of a single group."""
    windows, first, held = [], 0, 0
    for index, count in enumerate(rows.tolist()):
        if held and held + count > window_rows:
            windows.append((first, index))
            first, held = index, 0
        held += count
    return [*windows, (first, len(rows))]


def _permutation(count: int, *parts: int) -> npt.NDArray[Any]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(*parts))).numpy()
