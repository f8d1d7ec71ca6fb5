"""Gradients: the backward pass and clipping by the global norm, at any precision and with sharded parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.amp.grad_scaler import GradScaler

    from raymlops.training.model.ranks import Ranks


def backward(loss: torch.Tensor, scaler: GradScaler | None, *, times: float = 1.0) -> None:
    """Add ``times`` the loss's gradients to the parameters', scaled where there is a scaler."""
    if times != 1:  # a product by 1 would be one more operation, forward and backward
        loss = loss * times
    (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]


def scale_gradient(optimizer: torch.optim.Optimizer, factor: torch.Tensor) -> None:
    """Multiply the optimizer's gradients by a scalar on their device."""
    gradients: list[Any] = [
        value.grad for group in optimizer.param_groups for value in group["params"] if value.grad is not None
    ]
    parts = [value.to_local() if hasattr(value, "to_local") else value for value in gradients]
    if parts:
        torch._foreach_mul_(parts, factor)


def clip_gradient(
    optimizer: torch.optim.Optimizer, scaler: GradScaler | None, *, max_norm: float | None, need_norm: bool = True
) -> torch.Tensor | None:
    """Clip the whole gradient to ``max_norm``, if that is set, and return its norm before clipping.

    Call it once a step, after the last ``backward``: it unscales the gradient first. The norm is a float32 scalar on
    the gradients' device, equal on every rank; NaN or infinity if any gradient is. With sharded parameters it is a
    collective. Returns None, without any work, where the norm is neither needed nor clipped to.
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    if max_norm is None and not need_norm:
        return None
    # The optimizer's parameters and not the model's: under FSDP the model shows gathered ones after an evaluation.
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm: Any = get_total_norm([parameter.grad for parameter in parameters])
    if hasattr(norm, "full_tensor"):  # a DTensor: one exchange of one number
        norm = norm.full_tensor()
    if max_norm is not None:
        clip_grads_with_norm_(parameters, max_norm, norm)
    total: torch.Tensor = norm.float()
    return total


def average(parameters: Iterable[torch.Tensor], *, world_size: int) -> None:
    """Average the gradients of parameters over all ranks, by one all-reduce."""
    gradients = [value.grad for value in parameters if value.grad is not None]
    if world_size == 1 or not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_((flat[start : start + gradient.numel()] / world_size).view_as(gradient))
        start += gradient.numel()


def differ(parameters: Iterable[torch.Tensor], *, ranks: Ranks) -> bool:
    """Return whether ranks hold other weights, by more than rounding: then gradients were not averaged."""
    sizes = [value.detach().abs().sum(dtype=torch.float64) for value in parameters]
    if ranks.world_size == 1 or not sizes:
        return False
    mine = torch.stack(sizes).sum()
    mean = ranks.sum(mine.clone()) / ranks.world_size
    return ranks.any(bool((mine - mean).abs() > 1e-6 * mean))
