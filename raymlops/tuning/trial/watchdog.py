"""Whether a trial's training moves, and the end of a process in which it does not.

Owns the clock, how long silence may last, and the error that says where the training stands. A thread cannot be ended
from outside: a process whose training hangs is spoiled, and whoever gets the error has to end it. Where the training
holds the interpreter's lock, no code of ours runs at all: for that the process ends itself, after a multiple of the
time. Knows nothing of what is trained.
"""

from __future__ import annotations

import faulthandler
import math
import sys
import time
import traceback
from typing import TYPE_CHECKING, Protocol

from raymlops.errors import TrialHungError
from raymlops.training.supervision.hang_detector import COMPILED_START_S, START_S

if TYPE_CHECKING:
    from collections.abc import Callable

PREPARE_S = 600.0
"""How long ``datasets()`` and ``fit()`` may take at least: they give no sign, and a download takes its time."""
_BACKSTOP_TIMES = 3.0
"""How many times longer than a hang may last until the process ends itself."""
_REARM_S = 1.0
_FRAMES = 4


class Backstop(Protocol):
    """Ends this process by itself, unless it is armed again or disarmed in time."""

    def arm(self, after_s: float) -> None:
        """End the process in so many seconds; any earlier time is void."""
        ...

    def disarm(self) -> None:
        """End nothing."""
        ...


class ExitBackstop:
    """The interpreter's own watchdog, a C thread that needs no lock: it shows all stacks on stderr and exits."""

    def arm(self, after_s: float) -> None:
        """Exit in so many seconds."""
        faulthandler.dump_traceback_later(after_s, exit=True, file=2)

    def disarm(self) -> None:
        """Do not exit."""
        faulthandler.cancel_dump_traceback_later()


class NoBackstop:
    """Ends nothing."""

    def arm(self, after_s: float) -> None:
        """Do nothing."""

    def disarm(self) -> None:
        """Do nothing."""


class Watchdog:
    """Watches one training: preparing, then training, with rests in which it waits for somebody else.

    Steps, evaluation batches and rows that are read are signs of life. ``hang_timeout_s`` may be infinite.
    """

    def __init__(
        self,
        *,
        hang_timeout_s: float = math.inf,
        compiles: bool = False,
        backstop: Backstop | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.step = 0
        """Optimizer steps of the training that are known to be done."""
        self._clock = clock
        self._backstop = NoBackstop() if backstop is None else backstop
        self._hang_timeout_s = hang_timeout_s
        self._start_s = max(hang_timeout_s, COMPILED_START_S if compiles else START_S)
        self._allowed_s = max(hang_timeout_s, PREPARE_S)
        self._resumed = math.inf
        self._resting = False
        self._armed_s = -math.inf
        self._sign_s = clock()
        self._arm(self._sign_s)

    def begins(self, step: int) -> None:
        """Take in that the data is there and the training begins, or goes on after ``step``."""
        self.step = self._resumed = step
        self._allowed_s = self._start_s
        self._armed_s = -math.inf
        self._sign()

    def alive(self, step: int) -> None:
        """Take in a sign of life. Costs next to nothing: it is called at every step."""
        if step > self._resumed:
            self._allowed_s = self._hang_timeout_s
        self.step = step
        self._sign()

    def rests(self) -> None:
        """Take in that the training waits for somebody else, or has ended."""
        self._resting = True
        self._armed_s = -math.inf
        self._backstop.disarm()

    def wakes(self) -> None:
        """Take in that it goes on."""
        self._resting = False
        self._sign()

    def left_s(self) -> float:
        """Return for how many seconds more it may be silent; zero or less where it hangs."""
        return math.inf if self._resting else self._sign_s + self._allowed_s - self._clock()

    def look(self) -> None:
        """Put off the backstop: whoever calls this still runs, and will see a hang itself."""
        if not self._resting:
            self._arm(self._clock())

    def hung(self, thread_id: int | None) -> TrialHungError:
        """Return the error that says for how long the training has been silent, and where its thread stands."""
        silent_s = self._clock() - self._sign_s
        if self.step > self._resumed:
            where = f"after step {self.step}"
        else:
            where = "before its first step" if math.isfinite(self._resumed) else "while its data is prepared"
        return TrialHungError(
            f"the trial has not moved for {silent_s:.0f} s {where} (train.hang_timeout_s); it stands in "
            f"{innermost(thread_id)}",
            hint="Raise train.hang_timeout_s where one step or evaluation batch takes longer than that.",
        )

    def _sign(self) -> None:
        self._sign_s = self._clock()
        if self._sign_s - self._armed_s >= _REARM_S:
            self._arm(self._sign_s)

    def _arm(self, now_s: float) -> None:
        if math.isfinite(self._allowed_s):
            self._armed_s = now_s
            self._backstop.arm(_BACKSTOP_TIMES * self._allowed_s)


def innermost(thread_id: int | None) -> str:
    """Return where a thread stands, its innermost frames first, in one line."""
    frame = sys._current_frames().get(thread_id or 0)  # noqa: SLF001 - the only way
    if frame is None:
        return "no Python code"
    stack = traceback.extract_stack(frame)[-_FRAMES:]
    return " < ".join(f"{entry.name} ({entry.filename}:{entry.lineno})" for entry in reversed(stack))
