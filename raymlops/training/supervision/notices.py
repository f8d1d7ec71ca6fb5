"""What a supervised run says: the workers' events passed on, what goes on in words, and each restart with its cost.

Owns the wording, the seconds that a change cost, and errors of whoever listens, which must not cost a training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from raymlops.training.events import words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from raymlops.records import MetricPoint
    from raymlops.training.events import Event
    from raymlops.training.supervision.hang_detector import Watch


class Writer(Protocol):
    """The run's record."""

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        ...

    def catch_up(self, points: Sequence[MetricPoint]) -> int:
        """Take in those points of a checkpoint that are not there yet."""
        ...

    def note_restart(self, reason: str, *, step: int, workers: int) -> None:
        """Note that another attempt has started after ``step``."""
        ...


@dataclass(frozen=True)
class _Change:
    """An attempt that is to be noted once it has made a step."""

    reason: str
    workers: int
    step: int


class Teller:
    """Says what goes on to a writer. An exception of the writer's is kept until the training is done."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._error: Exception | None = None
        self._last_step_s: float | None = None
        self._change: _Change | None = None

    def __call__(self, text: str) -> None:
        """Say something."""
        self.pass_on([words(text)])

    def pass_on(self, events: Iterable[Event]) -> None:
        """Pass events on, also after one that the writer failed at: each may hold metrics that are nowhere else."""
        for event in events:
            self._try(lambda event=event: self._writer(event))  # type: ignore[misc]

    def catch_up(self, points: Sequence[MetricPoint]) -> None:
        """Pass on the points of a checkpoint: the process that should have written them may have died."""
        self._try(lambda: self._writer.catch_up(points))

    def starts(self, workers: int, *, step: int, reason: str) -> None:
        """Say that an attempt starts; ``reason`` says why, after the first."""
        if reason:
            self._change = _Change(reason, workers, step)
        self(f"starting {plural(workers)}{f' after step {step}' if step else ''}")

    def look(self, watch: Watch) -> None:
        """Note a restart with the seconds that it cost, as soon as its workers have made a step."""
        if self._change is None or watch.first_step_s is None:
            return
        change, self._change = self._change, None
        lost = "" if self._last_step_s is None else f" after {watch.first_step_s - self._last_step_s:.1f} s"
        self._note(change, f"went on with {plural(change.workers)}{lost}: {change.reason}")

    def ended(self, watch: Watch) -> None:
        """Take in that an attempt has ended."""
        self.look(watch)
        self._last_step_s = watch.last_step_s or self._last_step_s
        if self._change is not None:
            change, self._change = self._change, None
            self._note(change, f"went on with {plural(change.workers)}, which made no step: {change.reason}")

    def raise_kept(self) -> None:
        """Raise what the writer raised."""
        if self._error is not None:
            raise self._error

    def add_kept(self, error: BaseException) -> None:
        """Note on an error that the writer had failed as well."""
        if self._error is not None and self._error is not error:
            error.add_note(f"What was said of it was lost in part: {type(self._error).__name__}: {self._error}")

    def _note(self, change: _Change, text: str) -> None:
        self._try(lambda: self._writer.note_restart(text, step=change.step, workers=change.workers))

    def _try(self, tell: Callable[[], object]) -> None:
        try:
            tell()
        except Exception as error:
            self._error = self._error or error


def plural(workers: int) -> str:
    """Return a number of workers in words."""
    return f"{workers} worker{'' if workers == 1 else 's'}"
