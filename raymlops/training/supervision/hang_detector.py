"""What the heartbeats of one attempt tell: how far it is, whether it hangs, and when its first and last steps were.

Pure: beats and a clock's seconds in. Knows nothing of what is done about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.training.supervision.messages import Beat

START_S = 60.0
"""How long the first step may take at least. Until then a rank imports its libraries, reads data, builds the model and
joins groups of others that do the same, none of which gives a sign: a ``hang_timeout_s`` that was set by the length of
a step would end every attempt there."""
COMPILED_START_S = 600.0
"""The same with torch.compile, which compiles within the first step: minutes for a large model on a busy node."""


@dataclass(frozen=True)
class Hang:
    """Ranks that stand still. ``rank`` is the one to blame where one alone is silent."""

    message: str
    rank: int | None = None


class Watch:
    """Watches one attempt, which goes on after step ``resumed``."""

    def __init__(self, *, resumed: int, hang_timeout_s: float, compiles: bool = False) -> None:
        self.step = resumed
        """The most steps that any rank is known to have done."""
        self.first_step_s: float | None = None
        """When the first new step was done; None until then."""
        self.last_step_s: float | None = None
        self._resumed = resumed
        self._hang_timeout_s = hang_timeout_s
        self._start_s = max(hang_timeout_s, COMPILED_START_S if compiles else START_S)

    @property
    def stepping(self) -> bool:
        """Return whether a step was done."""
        return self.first_step_s is not None

    def look(self, beats: Mapping[int, Beat], *, now_s: float) -> Hang | None:
        """Take in the newest beats and return what hangs."""
        for beat in beats.values():
            if beat.step > self.step or (beat.step > self._resumed and not self.stepping):
                self.step = beat.step
                self.last_step_s = now_s - beat.silent_s - beat.step_age_s
                if self.first_step_s is None:
                    self.first_step_s = self.last_step_s
        return self._hang(beats)

    def _hang(self, beats: Mapping[int, Beat]) -> Hang | None:
        running = {rank: beat for rank, beat in beats.items() if not beat.done}
        silent = {rank: beat.silent_s for rank, beat in running.items() if beat.silent_s > self._hang_timeout_s}
        if silent:
            ranks = _ranks(silent)
            message = f"no sign of {ranks} for {max(silent.values()):.0f} s (train.hang_timeout_s)"
            return Hang(message, next(iter(silent)) if len(silent) == 1 else None)
        allowed_s = self._hang_timeout_s if self.stepping else self._start_s
        still_s = [beat.silent_s + beat.tick_age_s for beat in running.values()]
        if still_s and min(still_s) > allowed_s:
            where = f"after step {self.step}" if self.stepping else "before the first step"
            return Hang(f"no rank has moved for {min(still_s):.0f} s {where} (train.hang_timeout_s)")
        return None


def _ranks(ranks: Mapping[int, float]) -> str:
    shown = ", ".join(str(rank) for rank in sorted(ranks)[:8])
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{' and others' if len(ranks) > 8 else ''}"
