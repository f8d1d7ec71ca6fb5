"""Check each step's loss and gradient: take the step, skip it, or roll back to the last checkpoint.

Every rank calls these functions at the same steps and gets the same verdict. What to do is decided by ``nonfinite``.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

import torch

from raymlops.training.loop.nonfinite import non_finite, on_non_finite

if TYPE_CHECKING:
    from raymlops.training.loop.context import TrainContext

SKIPPED = "raymlops.skipped_steps"
"""Tag: the number of batches skipped so far."""


class Verdict(Enum):
    """What to do with a step whose gradient has been computed."""

    TAKE = auto()
    SKIP = auto()
    ROLLBACK = auto()
    """The run has been rolled back to its last checkpoint."""


def check_step(ctx: TrainContext, *, loss: torch.Tensor, norm: torch.Tensor | None) -> Verdict:
    """Return what to do with a step that ``run_state`` does not count yet.

    With ``on_non_finite: stop`` nothing is checked here: losses are checked when they are reduced, and weights before
    they are written.

    Raises:
        NonFiniteError: it happened too often.
    """
    if not ctx.guarded:
        return Verdict.TAKE
    finite = torch.isfinite(loss) & (torch.isfinite(norm) if norm is not None else True)
    return handle_fault(ctx) if ctx.ranks.any(not bool(finite)) else Verdict.TAKE


def handle_fault(ctx: TrainContext) -> Verdict:
    """Skip a step whose loss or gradient is not finite on some rank, or roll back.

    Raises:
        NonFiniteError: the policy is to stop, or it happened too often.
    """
    state, step = ctx.run_state, ctx.run_state.step + 1
    last_uri = ctx.last_checkpoint()
    decision = on_non_finite(
        step,
        policy=ctx.spec.on_non_finite,
        faults=state.faults,
        checkpoint=None if last_uri is None else last_uri.partition("?")[0].rpartition("/")[2],
    )
    what = f"loss or gradient is NaN or infinite at epoch {state.epoch}, step {step}, learning rate {state.lr:.3g}"
    if decision.action == "stop":
        raise non_finite(f"{what}: {decision.reason}")
    faults, points, first = [*state.faults, step], state.points, step
    if decision.action == "rollback" and last_uri is not None:
        ctx.roll_back(last_uri)
        first = ctx.run_state.step + 1
    state = ctx.run_state
    state.faults, state.points = faults, points
    state.skipped = sorted({*state.skipped, *range(first, step + 1)})
    ctx.message(f"{what}: {decision.reason}", tags={SKIPPED: str(len(state.skipped))})
    return Verdict.ROLLBACK if decision.action == "rollback" else Verdict.SKIP
