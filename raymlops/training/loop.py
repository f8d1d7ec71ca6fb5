"""The training loop, from top to bottom.

The arithmetic, for N training rows, a global batch of B rows and W workers: an epoch has ceil(N / B) steps; a
worker takes about B / W rows of each, in ``accumulate`` micro-batches; the gradient of a step is the exact mean over
its global batch, so that neither W nor ``accumulate`` changes a result beyond rounding (but for dropout, which each
rank draws for itself, and batch normalisation, which sees a micro-batch). The learning rate is a function of the step
alone.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from raymlops.errors import NonFiniteError
from raymlops.recipe import call_recipe, to_device
from raymlops.training.optimize import build_optimizer, lr_factor, set_lr
from raymlops.training.sampling import global_batches, micro_batches

if TYPE_CHECKING:
    from raymlops.training.context import TrainContext


def default_loop(ctx: TrainContext) -> None:
    """Train the recipe's model until ``epochs``, ``max_steps`` or ``patience`` end it.

    Raises:
        RecipeError: the recipe's code raises.
        NonFiniteError: a loss is NaN or infinite; names epoch, step and learning rate.
    """
    spec, train = ctx.spec, ctx.prepared.splits["train"]
    where = f"{type(ctx.recipe).__name__}.loss()"
    model = ctx.model()
    loss_of = ctx.parallel(model)
    optimizer = build_optimizer(model, spec)
    losses = _Losses(ctx)
    step = 0

    for epoch in range(1, spec.epochs + 1):
        ctx.seed_epoch(epoch)
        model.train()
        for indices in global_batches(train.rows, batch_size=spec.batch_size, seed=spec.seed, epoch=epoch):
            if step == ctx.steps:
                break
            ctx.check_signals()
            factor = lr_factor(step, steps=ctx.steps, schedule=spec.schedule, warmup_fraction=spec.warmup_fraction)
            set_lr(optimizer, spec.lr * factor)

            optimizer.zero_grad()
            step_loss = torch.zeros((), device=ctx.device)
            pieces = micro_batches(indices, rank=ctx.rank, world=ctx.world_size, pieces=spec.accumulate)
            for number, (piece, weight) in enumerate(pieces, start=1):
                batch = to_device(train.batch(piece), ctx.device)
                # Gradients travel once a step, with the last micro-batch.
                with _local_only(loss_of) if number < len(pieces) else nullcontext():
                    loss = call_recipe(where, lambda batch=batch: loss_of(batch)) * weight  # type: ignore[misc]
                    loss.backward()
                step_loss += loss.detach()

            if spec.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
            optimizer.step()
            step += 1

            losses.add(step_loss / ctx.world_size, rows=len(indices), lr=spec.lr * factor)
            if step % spec.log_every_steps == 0 or step == ctx.steps:
                losses.log(epoch=epoch, step=step)

        train_loss = losses.close_epoch(epoch=epoch, step=step)
        metrics = {"train/loss": train_loss, **ctx.evaluate(model)}
        if ctx.report(epoch=epoch, step=step, metrics=metrics, model=model, optimizer=optimizer):
            return


class _Losses:
    """Training losses, on their device until they are logged: one exchange and one copy a log, not a step."""

    def __init__(self, ctx: TrainContext) -> None:
        self._ctx = ctx
        self._pending: list[tuple[torch.Tensor, int, float]] = []
        self._epoch_sum = 0.0
        self._epoch_rows = 0
        self._since = time.monotonic()

    def add(self, loss: torch.Tensor, *, rows: int, lr: float) -> None:
        """Take in this rank's part of a step's loss."""
        self._pending.append((loss, rows, lr))

    def log(self, *, epoch: int, step: int) -> None:
        """Log the mean loss of the steps since the last log."""
        losses = self._merge(epoch=epoch, step=step)
        if not losses:
            return
        rows = sum(rows for _, rows, _ in self._pending)
        mean = sum(loss * rows for loss, (_, rows, _) in zip(losses, self._pending, strict=True)) / rows
        now = time.monotonic()
        self._ctx.log(
            epoch=epoch,
            step=step,
            metrics={"train/loss": mean, "train/lr": self._pending[-1][2]},
            rows_per_s=rows / max(now - self._since, 1e-9),
        )
        self._epoch_sum += mean * rows
        self._epoch_rows += rows
        self._pending, self._since = [], now

    def close_epoch(self, *, epoch: int, step: int) -> float:
        """Return the mean loss over the epoch's rows, as they were trained on."""
        self.log(epoch=epoch, step=step)
        mean = self._epoch_sum / self._epoch_rows
        self._epoch_sum, self._epoch_rows = 0.0, 0
        return mean

    def _merge(self, *, epoch: int, step: int) -> list[float]:
        if not self._pending:
            return []
        merged: Any = self._ctx.sum_over_ranks(torch.stack([loss for loss, _, _ in self._pending])).tolist()
        for index, loss in enumerate(merged):
            if not math.isfinite(loss):
                # Every rank sees the same sum, so every rank raises here, and no checkpoint was written since.
                raise NonFiniteError(
                    f"the training loss is {loss} at epoch {epoch}, step {step - len(merged) + index + 1}, "
                    f"learning rate {self._pending[index][2]:.3g}",
                    hint="Lower train.lr, set train.clip_norm, or look for extreme values in the data.",
                )
        return list(merged)


def _local_only(loss_of: torch.nn.Module) -> Any:
    no_sync: Any = getattr(loss_of, "no_sync", nullcontext)
    return no_sync()
