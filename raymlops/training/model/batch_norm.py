"""Batch normalisation of micro-batches that are too small for it, or of filler rows.

Knows nothing of ranks; ``data.order`` splits rows into micro-batches.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn


def normalizes_batches(model: nn.Module) -> bool:
    """Return whether a module of the model takes mean and variance over the rows of a micro-batch."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def one_row_is_too_few(model: nn.Module, forward: Callable[[], object]) -> bool:
    """Return whether a layer would get one value per channel, of which torch takes no variance, and raises ValueError.

    ``forward`` runs one row through the model, as a training does. An image is a row with many values per channel, and
    a layer in evaluation mode takes no variance at all. Modes and buffers are left as they were; what is drawn at
    random is not.
    """
    starved: list[_BatchNorm] = []

    def look(module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        assert isinstance(module, _BatchNorm)
        (given,) = (*args, *kwargs.values())
        if module.training and given.numel() == given.size(1) and not _is_shared(module):
            starved.append(module)
            # The forward pass continues: under FSDP, one that ends early confuses the next.
            module.training = False

    buffers = [buffer.clone() for buffer in model.buffers()]
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    try:
        # Hooks that are added after a compilation are not seen by it. What else fails here fails in the training too,
        # which says so.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), suppress(Exception):
            forward()
    finally:
        for hook in hooks:
            hook.remove()
        for module in starved:
            module.training = True
        for buffer, before in zip(model.buffers(), buffers, strict=True):  # a forward pass may have made new ones
            buffer.copy_(before)
    return bool(starved)


def _is_shared(module: _BatchNorm) -> bool:
    """Return whether a layer takes mean and variance over the rows of all ranks."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return isinstance(module, SyncBatchNorm) and distributed and torch.distributed.get_world_size() > 1


@contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """Make batch normalisation use the running statistics, without updating them.

    For two kinds of micro-batches, where one row is too few. The single row that is left over at the end of an epoch:
    it trains the weights as any row does, normalised as in an evaluation. The filler rows of a rank that has none:
    counted twice, they would pull the statistics towards themselves. A layer that keeps no statistics takes the batch's
    all the same.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True
