"""Training losses of a loop: kept on their device until they are logged, then reduced over ranks and summed.

One all-reduce and one copy per log, not per step. The sums are part of the run's state, so that a log that a restart
interrupts has the same value as without the restart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from raymlops.training.loop.nonfinite import non_finite

if TYPE_CHECKING:
    from raymlops.training.loop.context import TrainContext


class Losses:
    """Sums of the steps' losses."""

    def __init__(self, ctx: TrainContext) -> None:
        self._ctx = ctx
        self._pending: list[tuple[torch.Tensor, int, float, int]] = []

    def add(self, loss: torch.Tensor, *, rows: int) -> None:
        """Add this rank's part of a step's loss, before the step is counted."""
        state = self._ctx.run_state
        self._pending.append((loss, rows, state.lr, state.step + 1))

    def flush(self) -> None:
        """Add the pending losses to the sums of the run's state.

        Raises:
            NonFiniteError: a loss is NaN or infinite. Every rank sees the same sum, so every rank raises.
        """
        if not self._pending:
            return
        state = self._ctx.run_state
        reduced: Any = self._ctx.sum_over_ranks(torch.stack([loss for loss, *_ in self._pending])).tolist()
        for loss, (_, rows, lr, step) in zip(reduced, self._pending, strict=True):
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
        """Log the mean loss of the steps since the last log, with their learning rate and throughput."""
        self.flush()
        state = self._ctx.run_state
        if not state.log_rows:
            return
        metrics = {"train/loss": state.log_sum / state.log_rows}
        if state.lr:  # not known after a resume from an earlier version's checkpoint, until the next step
            metrics["train/lr"] = state.lr
        rows, state.log_sum, state.log_rows = state.log_rows, 0.0, 0
        self._ctx.log_with_costs(metrics, rows=rows)

    def close_epoch(self) -> dict[str, float]:
        """Log, and return the mean loss over the epoch's rows; empty if every step was skipped."""
        self.log()
        state = self._ctx.run_state
        return {"train/loss": state.loss_sum / state.loss_rows} if state.loss_rows else {}

    def discard(self) -> None:
        """Discard the pending losses after a rollback."""
        self._pending = []
