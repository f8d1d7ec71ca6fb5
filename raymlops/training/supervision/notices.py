"""Notices of a supervised run: events forwarded to the writer, and each restart with the seconds that it cost.

Owns the wording, and defers exceptions of the writer, which must not end a training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.training.events import words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from raymlops.records import MetricPoint
    from raymlops.training.events import Event
    from raymlops.training.supervision.hang_detector import HangDetector
    from raymlops.training.supervision.request import Writer


class Notifier:
    """Sends notices to a writer. The first exception of the writer is deferred until the training has ended."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._error: Exception | None = None
        self._last_step_s: float | None = None
        self._pending: tuple[str, int, int] | None = None
        """Reason, workers and step of a restart whose workers have taken no step yet."""

    def __call__(self, text: str) -> None:
        """Emit a notice."""
        self.forward([words(text)])

    def forward(self, events: Iterable[Event]) -> None:
        """Forward events, also after one that the writer failed at: each may hold metrics that are nowhere else."""
        for event in events:
            self._try(lambda event=event: self._writer(event))  # type: ignore[misc]

    def catch_up(self, points: Sequence[MetricPoint]) -> None:
        """Forward the points of a checkpoint: the process that should have written them may have died."""
        self._try(lambda: self._writer.catch_up(points))

    def starting(self, workers: int, *, step: int, reason: str) -> None:
        """Announce an attempt; ``reason`` says why it follows another one."""
        if reason:
            self._pending = (reason, workers, step)
        self(f"starting {plural(workers)}{f' after step {step}' if step else ''}")

    def observe(self, detector: HangDetector) -> None:
        """Record a restart with the seconds that it cost, as soon as its workers have taken a step."""
        if detector.first_step_s is not None:
            lost = "" if self._last_step_s is None else f" after {detector.first_step_s - self._last_step_s:.1f} s"
            self._note_restart(lost)

    def ended(self, detector: HangDetector) -> None:
        """Record the end of an attempt."""
        self.observe(detector)
        self._last_step_s = detector.last_step_s or self._last_step_s
        self._note_restart(", which took no step")

    def raise_deferred(self) -> None:
        """Raise the exception of the writer, if there was one."""
        if self._error is not None:
            raise self._error

    def add_deferred(self, error: BaseException) -> None:
        """Add a note to an error that the writer had failed as well."""
        if self._error is not None and self._error is not error:
            error.add_note(f"Its record is incomplete: {type(self._error).__name__}: {self._error}")

    def _note_restart(self, how: str) -> None:
        if self._pending is None:
            return
        (reason, workers, step), self._pending = self._pending, None
        text = f"resumed with {plural(workers)}{how}: {reason}"
        self._try(lambda: self._writer.note_restart(text, step=step, workers=workers))

    def _try(self, notify: Callable[[], object]) -> None:
        try:
            notify()
        except Exception as error:
            self._error = self._error or error


def plural(workers: int) -> str:
    """Return a number of workers in words."""
    return f"{workers} worker{'' if workers == 1 else 's'}"
