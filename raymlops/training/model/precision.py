"""Precision: autocast, the loss scaling of fp16, and the optimizer step.

Owns what differs between fp32, bf16 and fp16. The caller decides what to do about gradients that are not finite: with
the norm that ``gradients.clip_gradient`` returned, it calls ``optimizer_step`` or ``skip_step``.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch.amp.grad_scaler import GradScaler

    from raymlops.config.train import TrainSection

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(spec: TrainSection, device: torch.device | str) -> AbstractContextManager[Any]:
    """Return the context in which the recipe's loss and metrics are computed; a null context at fp32.

    Matrix products run in the low precision; what loses accuracy there, such as a softmax or a cross-entropy, in
    float32, by torch's own lists. Weights stay float32.
    """
    dtype = DTYPES.get(spec.precision)
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype=dtype)


def scaler_of(spec: TrainSection, device: torch.device | str) -> GradScaler | None:
    """Return the loss scaler of fp16, whose gradients would underflow below 6e-8; None for other precisions."""
    return torch.amp.GradScaler(torch.device(device).type) if spec.precision == "fp16" else None


def optimizer_step(optimizer: torch.optim.Optimizer, scaler: GradScaler | None) -> bool:
    """Update the parameters, and return whether they were updated.

    A scaler skips a step if the scaled gradients overflowed, on every rank alike, and halves its scale; it
    finds the right scale that way, so the first few steps may be skipped.
    """
    if scaler is None:
        optimizer.step()
        return True
    steps: list[bool] = []
    # The scaler does not say whether it stepped; its scale before and after would cost two waits for the device.
    handle = optimizer.register_step_post_hook(lambda *_: steps.append(True))
    try:
        scaler.step(optimizer)
    finally:
        handle.remove()
    scaler.update()
    return bool(steps)


def skip_step(scaler: GradScaler | None) -> None:
    """Skip the optimizer step after ``clip_gradient``: the scaler learns of an overflow, ready for the next step."""
    if scaler is not None:
        scaler.update()


def overflow_expected(scaler: GradScaler | None) -> bool:
    """Return whether the scale may have caused an infinite gradient; call it after ``optimizer_step`` or ``skip_step``.

    It may while the scale is, or before the last halving was, above 1: at 1 the gradient itself is at fault.
    """
    return scaler is not None and scaler.get_scale() >= 1.0
