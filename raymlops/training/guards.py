"""What becomes of a step whose loss or gradient is no finite number. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW = 100
MOST_IN_WINDOW = 10
"""More than a tenth of the batches left out is no accident of the data: the run diverges."""


@dataclass(frozen=True)
class NonFiniteDecision:
    """``stop`` ends the run, ``skip`` leaves the batch out, ``rollback`` also takes back what led there."""

    action: Literal["stop", "skip", "rollback"]
    reason: str


def on_non_finite(
    step: int,
    *,
    policy: Literal["stop", "skip", "rollback"],
    skipped: Sequence[int],
    checkpoint: str | None,
) -> NonFiniteDecision:
    """Decide about a step, counted from 1; ``skipped`` were left out before, ``checkpoint`` is where to go back to."""
    recent = sum(step - WINDOW < other <= step for other in skipped)
    if policy == "stop":
        return NonFiniteDecision("stop", "train.on_non_finite is stop")
    if recent >= MOST_IN_WINDOW:
        return NonFiniteDecision("stop", f"{recent} of the last {WINDOW} batches were left out already")
    if policy == "rollback" and checkpoint is not None:
        return NonFiniteDecision("rollback", f"back to checkpoint {checkpoint}, from there on without this batch")
    return NonFiniteDecision("skip", "the batch is left out")
