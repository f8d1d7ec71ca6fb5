"""Batch normalisation of micro-batches that are too small for it, or whose rows do not count.

Knows nothing of ranks; how rows become micro-batches is ``sampling``'s.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def normalizes_batches(model: nn.Module) -> bool:
    """Return whether a module of the model takes mean and variance over the rows of a micro-batch."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


@contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch normalisation use the statistics of the batches so far, and leave them as they are.

    For two kinds of micro-batches. The single row that is left over at the end of an epoch: it trains the weights as
    any row does, normalised as in an evaluation. The filler rows of a rank that has none: counted twice, they would
    pull the statistics towards themselves. A layer that keeps no statistics takes the batch's all the same.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True
