"""Decide about a step whose loss or gradient is not finite: stop, skip it, or roll back. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from raymlops.errors import NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW = 100
MOST_IN_WINDOW = 10
"""More than a tenth of the steps cannot be bad data: the run diverges."""


@dataclass(frozen=True)
class NonFiniteDecision:
    """``stop`` ends the run, ``skip`` skips the batch, ``rollback`` also skips the batches before it.

    A loss that grows until it overflows was damaged earlier. Rolling back and skipping all batches since is what helped
    there (PaLM, arXiv:2204.02311, section 5.1).
    """

    action: Literal["stop", "skip", "rollback"]
    reason: str


def on_non_finite(
    step: int,
    *,
    policy: Literal["stop", "skip", "rollback"],
    faults: Sequence[int],
    checkpoint: str | None,
) -> NonFiniteDecision:
    """Decide about a step, counted from 1; ``faults`` are earlier ones, ``checkpoint`` the one to roll back to."""
    recent = sum(step - WINDOW < other <= step for other in faults)
    if policy == "stop":
        return NonFiniteDecision("stop", "train.on_non_finite is stop")
    if recent >= MOST_IN_WINDOW:
        return NonFiniteDecision("stop", f"it happened {recent} times in the last {WINDOW} steps already")
    if policy == "rollback" and checkpoint is not None:
        return NonFiniteDecision("rollback", f"back to checkpoint {checkpoint}, without the batches since")
    return NonFiniteDecision("skip", "the batch is left out")


def non_finite(message: str) -> NonFiniteError:
    """Return the error that ends a run for a value that is not finite."""
    return NonFiniteError(
        message,
        hint="Look for extreme values in the data, or start a new run with a lower train.lr or with train.clip_norm.",
    )
