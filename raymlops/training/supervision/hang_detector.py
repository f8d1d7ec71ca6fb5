"""Detect hangs from the heartbeats of one attempt, and measure when its first and last steps were.

Pure: heartbeats and a clock's seconds in. Knows nothing of what is done about a hang.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.training.supervision.failure_policy import Failure

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from raymlops.training.supervision.messages import Heartbeat

START_S = 60.0
"""The least time that the first step may take. Until then a rank imports its libraries, reads data, builds the model
and joins process groups, without a sign of life: a ``hang_timeout_s`` chosen by the length of a step would end every
attempt there."""
COMPILED_START_S = 600.0
"""The same with torch.compile, which compiles within the first step: minutes for a large model on a busy node."""


class HangDetector:
    """Observes one attempt, which resumes after step ``resumed``."""

    def __init__(self, *, resumed: int, hang_timeout_s: float, compiles: bool = False) -> None:
        self.step = resumed
        """The highest step of any rank."""
        self.first_step_s: float | None = None
        """When the first new step was taken; None until then."""
        self.last_step_s: float | None = None
        self._resumed = resumed
        self._hang_timeout_s = hang_timeout_s
        self._start_s = max(hang_timeout_s, COMPILED_START_S if compiles else START_S)

    @property
    def stepping(self) -> bool:
        """Return whether a step was taken."""
        return self.first_step_s is not None

    def observe(self, heartbeats: Mapping[int, Heartbeat], *, now_s: float) -> Failure | None:
        """Take in the newest heartbeats and return a hang, if there is one; with the rank, if it alone is silent."""
        for beat in heartbeats.values():
            if beat.step > self.step or (beat.step > self._resumed and not self.stepping):
                self.step = beat.step
                self.last_step_s = now_s - beat.silent_s - beat.step_age_s
                if self.first_step_s is None:
                    self.first_step_s = self.last_step_s
        running = {rank: beat for rank, beat in heartbeats.items() if not beat.done}
        silent = {rank: beat.silent_s for rank, beat in running.items() if beat.silent_s > self._hang_timeout_s}
        if silent:
            ranks = _ranks(silent)
            message = f"no heartbeat of {ranks} for {max(silent.values()):.0f} s (train.hang_timeout_s)"
            return self._hang(message, rank=next(iter(silent)) if len(silent) == 1 else None)
        allowed_s = self._hang_timeout_s if self.stepping else self._start_s
        still_s = [beat.silent_s + beat.tick_age_s for beat in running.values()]
        if still_s and min(still_s) > allowed_s:
            where = f"after step {self.step}" if self.stepping else "before the first step"
            return self._hang(f"no rank has moved for {min(still_s):.0f} s {where} (train.hang_timeout_s)")
        return None

    def _hang(self, message: str, *, rank: int | None = None) -> Failure:
        return Failure("hang", "HangError", message, rank=rank, step=self.step)


def _ranks(ranks: Collection[int]) -> str:
    """Return ranks in words."""
    shown = ", ".join(str(rank) for rank in sorted(ranks)[:8])
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{' and others' if len(ranks) > 8 else ''}"
