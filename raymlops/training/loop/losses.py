"""Training losses of a loop: kept on their device until they are logged, then reduced over ranks and summed.

One all-reduce and one copy per log, not per step. The sums are part of the run's state, so that a log that a restart
interrupts has the same value as without the restart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from raymlops.errors import RecipeError
from raymlops.training.loop.nonfinite import non_finite

if TYPE_CHECKING:
    from raymlops.loss_value import LossValue
    from raymlops.training.loop.context import TrainContext


@dataclass
class StepLoss:
    """This rank's part of a step's loss: sums over its rows, or by the loss's own weights, and what divides them.

    ``weight`` is the number of rows of the global batch where the loss is a mean over rows, as it then is on every
    rank; else the sum of this rank's weights.
    """

    value: torch.Tensor
    parts: dict[str, torch.Tensor]
    weight: torch.Tensor | float

    @classmethod
    def of(cls, loss: LossValue, *, rows: float, all_rows: int) -> StepLoss:
        """Return that of one micro-batch of ``rows``, 0 for filler rows, of a global batch of ``all_rows``."""
        times = rows if loss.weight is None else float(rows > 0)
        parts = {name: part * times for name, part in loss.parts.items()}
        return cls(loss.value.detach() * times, parts, all_rows if loss.weight is None else loss.weight * times)

    def plus(self, other: StepLoss) -> StepLoss:
        """Return the sum of two micro-batches of one step.

        Raises:
            RecipeError: they are of different forms.
        """
        self.refuse_other_form(other, each="micro-batch")
        parts = {name: part + other.parts[name] for name, part in self.parts.items()}
        weight = self.weight + other.weight if self.weighted else self.weight
        return StepLoss(self.value + other.value, parts, weight)

    @property
    def weighted(self) -> bool:
        """Return whether it is divided by weights of its own."""
        return isinstance(self.weight, torch.Tensor)

    def refuse_other_form(self, other: StepLoss, *, each: str) -> None:
        """Refuse to add up what ``loss`` returned in two forms, for one ``each`` and another.

        Raises:
            RecipeError: they have other parts, or one is a mean and the other a sum with its weight.
        """
        if list(self.parts) != list(other.parts):
            raise RecipeError(
                f"loss() returned the parts {list(other.parts)}, and {list(self.parts)} in the {each} before"
            )
        if self.weighted != other.weighted:
            raise RecipeError(
                f"loss() returned a mean for one {each} and (sum, weight) for another; return one of them"
            )


class Losses:
    """Sums of the steps' losses."""

    def __init__(self, ctx: TrainContext) -> None:
        self._ctx = ctx
        self._pending: list[tuple[StepLoss, float, int]] = []
        self._last: StepLoss | None = None
        self._rows = 0

    def add(self, loss: StepLoss, *, rows: int) -> None:
        """Add this rank's part of a step's loss, before the step is counted.

        Raises:
            RecipeError: it is of another form than that of the step before.
        """
        if self._last is not None:
            self._last.refuse_other_form(loss, each="step")
        self._last = loss
        self._rows += rows
        state = self._ctx.run_state
        self._pending.append((loss, state.lr, state.step + 1))

    def flush(self) -> None:
        """Add the pending losses to the sums of the run's state.

        Raises:
            NonFiniteError: a loss is NaN or infinite. Every rank sees the same sum, so every rank raises.
        """
        if not self._pending:
            return
        state = self._ctx.run_state
        reduced: Any = self._ctx.sum_over_ranks(_stacked([loss for loss, *_ in self._pending])).tolist()
        for sums, (loss, lr, step) in zip(reduced, self._pending, strict=True):
            weight: Any = sums.pop(0) if loss.weighted else loss.weight  # where it is no sum, every rank knows it
            named = list(zip(["loss", *loss.parts], sums, strict=True))
            for name, total in (*named[1:], named[0]):  # a part is named before what it makes of the whole
                if not math.isfinite(total):
                    what = "the training loss" if name == "loss" else f"the part {name} of the training loss"
                    raise non_finite(f"{what} is {total} at epoch {state.epoch}, step {step}, learning rate {lr:.3g}")
                for kept in (state.loss_sums, state.log_sums):
                    kept[name] = kept.get(name, 0.0) + total
            state.loss_rows += weight
            state.log_rows += weight
        self._pending = []

    def log(self) -> None:
        """Log the mean loss of the steps since the last log, with their learning rate and throughput."""
        self.flush()
        state = self._ctx.run_state
        metrics = _means(state.log_sums, state.log_rows)
        if not metrics:
            return
        if state.lr:  # not known after a resume from an earlier version's checkpoint, until the next step
            metrics["train/lr"] = state.lr
        rows, self._rows = self._rows, 0
        state.log_sums, state.log_rows = {}, 0.0
        self._ctx.log_with_costs(metrics, rows=rows)

    def since_report(self) -> dict[str, float]:
        """Log, and return the mean loss since the last report; empty if every step was skipped."""
        self.log()
        state = self._ctx.run_state
        return _means(state.loss_sums, state.loss_rows)

    def discard(self) -> None:
        """Discard the pending losses after a rollback."""
        self._pending = []


def _stacked(losses: list[StepLoss]) -> torch.Tensor:
    """Return a row for each step: its weight, where that is a sum over ranks, its value and its parts."""
    tensors = [
        tensor
        for loss in losses
        for tensor in (loss.weight, loss.value, *loss.parts.values())
        if isinstance(tensor, torch.Tensor)
    ]
    return torch.stack(tensors).view(len(losses), -1)


def _means(sums: dict[str, float], weight: float) -> dict[str, float]:
    return {f"train/{name}": total / weight if weight else 0.0 for name, total in sums.items()}
