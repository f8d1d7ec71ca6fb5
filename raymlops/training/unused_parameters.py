"""Whether a loss leaves a trainable parameter without a gradient, which DDP needs to know.

A model that skips layers at random, or routes rows, uses other parameters in each forward pass: several are looked at.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from raymlops.config.train import TrainSection

_DRAWS = 32
"""Forward passes in which unused parameters are looked for: a layer that is skipped once in five is missed in 0.1%."""
_DRAWS_S = 2.0
"""The time for those but the first, so that a large model starts."""


def configured(section: TrainSection) -> bool | None:
    """Return what the configuration says of unused parameters, None where it leaves that open; FSDP need not know."""
    if section.strategy != "ddp":
        return False
    return None if section.find_unused_parameters == "auto" else section.find_unused_parameters


def leaves_unused(model: nn.Module, loss: torch.Tensor, *, again: Callable[[], torch.Tensor]) -> bool:
    """Return whether this loss leaves a trainable parameter without a gradient, or one of those that ``again`` draws.

    The graph of ``loss`` is gone afterwards.
    """
    if _has_none(model, loss):
        return True
    end_s = time.monotonic() + _DRAWS_S
    return any(_leaves_out(model, again()) for _ in range(1, _DRAWS) if time.monotonic() < end_s)


def _has_none(model: nn.Module, loss: torch.Tensor) -> bool:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        return False
    loss.backward()  # type: ignore[no-untyped-call]
    unused = any(parameter.grad is None for parameter in trainable)
    model.zero_grad(set_to_none=True)
    return unused


def _leaves_out(model: nn.Module, loss: torch.Tensor) -> bool:
    """Return whether a trainable parameter is not in the graph of a loss, which is where DDP looks."""
    found, seen, left = set(), set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))  # of a leaf
        left += [inner for inner, _ in node.next_functions]
    return any(id(parameter) not in found for parameter in model.parameters() if parameter.requires_grad)
