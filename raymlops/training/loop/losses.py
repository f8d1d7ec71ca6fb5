"""Training losses of a loop: on their device until they are needed, then merged over ranks, logged and summed.

One exchange and one copy a log, not a step. The sums live in the run's state, so that a log that a restart cut in two
says what it would have said.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from raymlops.training.loop.nonfinite import non_finite
from raymlops.training.loop.optimizer import lr_factor

if TYPE_CHECKING:
    from raymlops.training.loop.context import TrainContext


class Losses:
    """What each step's loss adds up to."""

    def __init__(self, ctx: TrainContext) -> None:
        self._ctx = ctx
        self._pending: list[tuple[torch.Tensor, int, float, int]] = []

    def add(self, loss: torch.Tensor, *, rows: int, lr: float) -> None:
        """Take in this rank's part of a step's loss, before the step is counted."""
        self._pending.append((loss, rows, lr, self._ctx.run_state.step + 1))

    def settle(self) -> None:
        """Bring the sums of the run's state up to date.

        Raises:
            NonFiniteError: a loss is NaN or infinite. Every rank sees the same sum, so every rank raises.
        """
        if not self._pending:
            return
        state = self._ctx.run_state
        merged: Any = self._ctx.sum_over_ranks(torch.stack([loss for loss, *_ in self._pending])).tolist()
        for loss, (_, rows, lr, step) in zip(merged, self._pending, strict=True):
            if not math.isfinite(loss):
                raise non_finite(
                    f"the training loss is {loss} at epoch {state.epoch}, step {step}, learning rate {lr:.3g}"
                )
            state.loss_sum += loss * rows
            state.loss_rows += rows
            state.log_sum += loss * rows
            state.log_rows += rows
        self._pending = []

    def log(self) -> None:
        """Log the mean loss of the steps since the last log, with what they cost."""
        self.settle()
        state = self._ctx.run_state
        if not state.log_rows:
            return
        spec = self._ctx.spec
        factor = lr_factor(
            state.step - 1, steps=self._ctx.steps, schedule=spec.schedule, warmup_fraction=spec.warmup_fraction
        )
        metrics = {"train/loss": state.log_sum / state.log_rows, "train/lr": spec.lr * factor}
        rows, state.log_sum, state.log_rows = state.log_rows, 0.0, 0
        self._ctx.log_with_costs(metrics, rows=rows)

    def close_epoch(self) -> dict[str, float]:
        """Log, and return the mean loss over the epoch's rows as they were trained on; nothing if none counts."""
        self.log()
        state = self._ctx.run_state
        return {"train/loss": state.loss_sum / state.loss_rows} if state.loss_rows else {}

    def forget(self) -> None:
        """Drop what is not settled: the run has gone back to a checkpoint."""
        self._pending = []
