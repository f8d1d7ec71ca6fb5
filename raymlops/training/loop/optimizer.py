"""The optimizer and its learning rate, from configuration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

    from raymlops.config.train import TrainSection


def total_steps(spec: TrainSection, *, rows: int) -> int:
    """Return the number of optimizer steps of a run that is not stopped early."""
    steps = math.ceil(rows / spec.batch_size) * spec.epochs
    return steps if spec.max_steps is None else min(steps, spec.max_steps)


def learning_rate(spec: TrainSection, step: int, *, steps: int) -> float:
    """Return the learning rate at ``step``, counted from 0.

    It rises linearly over the first ``warmup_fraction`` of all steps, the last of which has the peak ``spec.lr``, then
    stays (``constant``) or falls along a line or a half cosine, to zero at step ``steps``, which is not taken.
    """
    warmup = round(steps * spec.warmup_fraction)
    if step < warmup:
        return spec.lr * ((step + 1) / warmup)
    if spec.schedule == "constant":
        return spec.lr
    progress = (step - warmup) / (steps - warmup)
    return spec.lr * (1 - progress if spec.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2)


def build_optimizer(model: nn.Module, spec: TrainSection) -> torch.optim.Optimizer:
    """Return the optimizer over the parameters that take a gradient."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if spec.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=spec.lr, betas=(spec.momentum, 0.999), weight_decay=spec.weight_decay)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
