"""Rows of all workers in a loss, such as the negatives of a contrastive one.

Owns that workers with different numbers of rows agree on one order. Knows nothing of the loop, which says when.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

_STEP: ContextVar[bool | None] = ContextVar("raymlops_gathered", default=None)
"""In a training step, whether this rank's rows count; None elsewhere."""


@contextmanager
def training_step(*, counts: bool) -> Iterator[None]:
    """Enter a part of a training step that all ranks take; rows of a rank that only fill it do not count."""
    token = _STEP.set(counts)
    try:
        yield
    finally:
        _STEP.reset(token)


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all workers, ``(all rows, ...)``, and where this worker's begin; gradients flow back.

    For ``loss`` in the default loop, called equally often on every worker: a row's loss against all returned rows,
    averaged over this worker's rows, is the loss of one worker with the whole batch. Workers may hold different numbers
    of rows. In evaluations, in checks before the training and on one worker, returns ``rows`` and 0.
    """
    import torch
    import torch.distributed as dist

    counts = _STEP.get()
    if counts is None or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, 0
    from torch.distributed.nn.functional import all_gather

    rank, world = dist.get_rank(), dist.get_world_size()
    own = torch.tensor([len(rows), len(rows) if counts else 0], device=rows.device)
    sizes = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(sizes, own)
    held, counted = (torch.stack(sizes).T).tolist()
    padded = torch.cat([rows, rows.new_zeros(max(held) - len(rows), *rows.shape[1:])])
    kept = [held[each] if each == rank else counted[each] for each in range(world)]
    parts: tuple[Tensor, ...] = all_gather(padded)  # type: ignore[no-untyped-call]
    found = [part[:size] for part, size in zip(parts, kept, strict=True)]
    return torch.cat(found), sum(kept[:rank])
