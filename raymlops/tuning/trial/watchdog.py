"""Hang detection for a trial's training in a thread of its own process.

Owns the timeouts, and the error that names the stack of a hung training. A thread cannot be killed: a process whose
training hangs is unusable, and the receiver of the error must end it. Where the training holds the interpreter's lock,
no Python code runs: for that case the process exits by itself after a multiple of the timeout.
"""

from __future__ import annotations

import faulthandler
import math
import sys
import time
import traceback
from typing import TYPE_CHECKING

from raymlops.errors import TrialHungError
from raymlops.training.supervision.hang_detector import COMPILED_START_S, START_S

if TYPE_CHECKING:
    from collections.abc import Callable

PREPARE_S = 600.0
"""The least timeout of ``datasets()`` and ``fit()``: they send no heartbeat, and may download data."""
_BACKSTOP_TIMES = 3.0
"""Multiple of the timeout after which the process exits by itself."""
_REARM_S = 1.0
_FRAMES = 4


def exit_process(after_s: float | None) -> None:
    """Print all stacks and exit in ``after_s`` seconds unless this is called again; None cancels it.

    The interpreter's faulthandler does that in a C thread, which needs no lock.
    """
    if after_s is None:
        faulthandler.cancel_dump_traceback_later()
    else:
        faulthandler.dump_traceback_later(after_s, exit=True, file=2)


class Watchdog:
    """Watches one training: preparation, then training, with pauses in which it waits for the driver.

    Steps, evaluation batches and rows read are heartbeats. ``hang_timeout_s`` may be infinite. ``backstop`` is called
    with the seconds after which the process is to exit unless it is called again; None cancels that.
    """

    def __init__(
        self,
        *,
        hang_timeout_s: float = math.inf,
        compiles: bool = False,
        backstop: Callable[[float | None], None] = lambda _after_s: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.step = 0
        """The last known optimizer step."""
        self._clock = clock
        self._backstop = backstop
        self._hang_timeout_s = hang_timeout_s
        self._start_s = max(hang_timeout_s, COMPILED_START_S if compiles else START_S)
        self._allowed_s = max(hang_timeout_s, PREPARE_S)
        self._first_step = math.inf
        self._paused = False
        self._armed_s = -math.inf
        self._heartbeat_s = clock()
        self._arm(self._heartbeat_s)

    def start(self, step: int) -> None:
        """Record that the data is prepared and the training starts after ``step``."""
        self.step = self._first_step = step
        self._allowed_s = self._start_s
        self._armed_s = -math.inf
        self._heartbeat()

    def alive(self, step: int) -> None:
        """Record a heartbeat. This is cheap: it is called at every step."""
        if step > self._first_step:
            self._allowed_s = self._hang_timeout_s
        self.step = step
        self._heartbeat()

    def pause(self) -> None:
        """Record that the training waits for the driver, or has ended."""
        self._paused = True
        self._armed_s = -math.inf
        self._backstop(None)

    def resume(self) -> None:
        """Record that it continues."""
        self._paused = False
        self._heartbeat()

    def left_s(self) -> float:
        """Return the seconds until the timeout; zero or less where the training hangs."""
        return math.inf if self._paused else self._heartbeat_s + self._allowed_s - self._clock()

    def defer_backstop(self) -> None:
        """Re-arm the backstop: the caller still runs, and will detect a hang itself."""
        if not self._paused:
            self._arm(self._clock())

    def error(self, thread_id: int | None) -> TrialHungError:
        """Return the error with the time since the last heartbeat and the stack of the training's thread."""
        silent_s = self._clock() - self._heartbeat_s
        if self.step > self._first_step:
            where = f"after step {self.step}"
        else:
            where = "before its first step" if math.isfinite(self._first_step) else "while its data is prepared"
        return TrialHungError(
            f"no progress for {silent_s:.0f} s {where} (train.hang_timeout_s); the trial is in {innermost(thread_id)}",
            hint="Raise train.hang_timeout_s where one step or evaluation batch takes longer than that.",
        )

    def _heartbeat(self) -> None:
        self._heartbeat_s = self._clock()
        if self._heartbeat_s - self._armed_s >= _REARM_S:
            self._arm(self._heartbeat_s)

    def _arm(self, now_s: float) -> None:
        if math.isfinite(self._allowed_s):
            self._armed_s = now_s
            self._backstop(_BACKSTOP_TIMES * self._allowed_s)


def innermost(thread_id: int | None) -> str:
    """Return the stack of a thread in one line, innermost frames first."""
    frame = sys._current_frames().get(thread_id or 0)  # noqa: SLF001 - the only way
    if frame is None:
        return "no Python code"
    stack = traceback.extract_stack(frame)[-_FRAMES:]
    return " < ".join(f"{entry.name} ({entry.filename}:{entry.lineno})" for entry in reversed(stack))
