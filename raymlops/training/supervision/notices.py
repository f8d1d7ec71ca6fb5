"""Notices of a supervised run: what happens in words, and each restart with the seconds that it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.training.events import Event, words

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.training.supervision.hang_detector import HangDetector


class Notifier:
    """Emits notices and restarts as events."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._last_step_s: float | None = None
        self._pending: tuple[str, int, int] | None = None
        """Reason, workers and step of a restart whose workers have taken no step yet."""

    def __call__(self, text: str) -> None:
        """Emit a notice."""
        self._emit(words(text))

    def starting(self, workers: int, *, step: int, reason: str) -> None:
        """Announce an attempt; ``reason`` says why it follows another one."""
        if reason:
            self._pending = (reason, workers, step)
        self(f"starting {plural(workers)}{f' after step {step}' if step else ''}")

    def observe(self, detector: HangDetector) -> None:
        """Emit a restart with the seconds that it cost, as soon as its workers have taken a step."""
        if detector.first_step_s is not None:
            lost = "" if self._last_step_s is None else f" after {detector.first_step_s - self._last_step_s:.1f} s"
            self._emit_restart(lost)

    def ended(self, detector: HangDetector) -> None:
        """Record the end of an attempt."""
        self.observe(detector)
        self._last_step_s = detector.last_step_s or self._last_step_s
        self._emit_restart(", which took no step")

    def _emit_restart(self, how: str) -> None:
        if self._pending is None:
            return
        (reason, workers, step), self._pending = self._pending, None
        text = f"resumed with {plural(workers)}{how}: {reason}"
        self._emit(Event("restart", step=step, workers=workers, message=text))


def plural(workers: int) -> str:
    """Return a number of workers in words."""
    return f"{workers} worker{'' if workers == 1 else 's'}"
