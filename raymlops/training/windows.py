"""The order of an epoch over rows that lie in groups: shuffled, yet with few groups open at a time.

Groups are permuted, neighbours in that order are gathered into windows that fit in memory, and rows are permuted inside
a window. So every row is drawn once, a reader decodes each group once, and rows meet that lie far apart in the files;
rows of one window alone never meet those of another in a batch, but where windows touch. Pure but for
torch's generator, and lazy: the row numbers of one window exist at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raymlops.training.sampling import derived_seed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Rows = npt.NDArray[np.int64]

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
    order = _permutation(len(group_rows), seed, epoch, 0, _GROUPS)
    windows = _windows(group_rows[order], window_rows=window_rows)
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


def _windows(rows: Rows, *, window_rows: int) -> list[tuple[int, int]]:
    """Return the ends of runs of groups that hold at most ``window_rows`` rows, or a single group."""
    windows, first, held = [], 0, 0
    for index, count in enumerate(rows.tolist()):
        if held and held + count > window_rows:
            windows.append((first, index))
            first, held = index, 0
        held += count
    return [*windows, (first, len(rows))]


def _permutation(count: int, *parts: int) -> npt.NDArray[Any]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(*parts))).numpy()
