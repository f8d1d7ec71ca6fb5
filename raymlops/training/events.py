"""Progress: what happened as events, and three ways to show them, all on stderr.

A terminal gets a live bar, a job log one logfmt line at most every ten seconds, a notebook one display that
is updated in place. Knows nothing of training itself; sweeps show theirs with the same pieces.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TextIO

from raymlops.display import (
    LOG_EVERY_S,
    NotebookPlace,
    PlainDisplay,
    Throttle,
    kind_for,
    logfmt_line,
    running_in_notebook,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

TOLD = ("message", "restart")
"""Kinds of events that are words: they move no bar, and are shown whenever they come."""

COSTS = ("time/", "throughput/", "system/")
"""Metrics that are for MLflow's charts alone: a line or a bar would drown in them."""


@dataclass(frozen=True)
class Event:
    """One thing that happened in a run. Counts are of the whole run; ``metrics`` are those known at this moment."""

    kind: Literal["start", "step", "epoch", "end", "message", "restart"]
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    elapsed_s: float = 0.0
    message: str = ""
    rows_per_s: float = 0.0
    timestamp_ms: int = 0
    """Wall clock, set where the event happened."""
    workers: int = 0
    """How many train now; 0 where that is not known."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What else the run's record is to say from now on."""

    @property
    def eta_s(self) -> float | None:
        """Return the seconds to go at the pace so far, or None before the first step."""
        return self.elapsed_s / self.step * (self.steps - self.step) if self.step and self.steps else None


def words(text: str, *, tags: Mapping[str, str] | None = None) -> Event:
    """Return an event that says something now; ``tags`` are what the run's record is to say from now on."""
    return Event("message", message=text, timestamp_ms=int(time.time() * 1000), tags=tags or {})


class Display(Protocol):
    """Shows events; a context manager, so that a live bar is gone when an error is printed."""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def display(stream: TextIO | None = None) -> Display:
    """Return the display for ``stream`` (default: stderr) and this process."""
    stream = sys.stderr if stream is None else stream
    kind = kind_for(isatty=stream.isatty(), in_notebook=running_in_notebook())
    if kind == "notebook":
        return NotebookDisplay()
    return TerminalDisplay(stream) if kind == "terminal" else LogDisplay(stream)


def logfmt(event: Event) -> str:
    """Return the event as one line of ``key=value`` pairs."""
    pairs: dict[str, Any] = {"event": event.kind}
    if event.epochs:
        pairs["epoch"] = f"{event.epoch}/{event.epochs}"
    if event.steps:
        pairs["step"] = f"{event.step}/{event.steps}"
    pairs |= {name: f"{value:.5g}" for name, value in event.metrics.items() if not name.startswith(COSTS)}
    if event.rows_per_s:
        pairs["rows_per_s"] = f"{event.rows_per_s:.0f}"
    if event.workers:
        pairs["workers"] = event.workers
    if event.elapsed_s:
        pairs["elapsed_s"] = f"{event.elapsed_s:.1f}"
    if event.kind in {"step", "epoch"} and event.eta_s is not None:
        pairs["eta_s"] = f"{event.eta_s:.0f}"
    if event.message:
        pairs["msg"] = event.message
    return logfmt_line(pairs)


class LogDisplay(PlainDisplay):
    """One logfmt line at most every ten seconds, and in any case messages, restarts and the last one."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._throttle = Throttle(LOG_EVERY_S, clock=clock)
        self._metrics: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Print the event if it is time."""
        self._metrics.update(event.metrics)
        if event.kind in TOLD:
            print(logfmt(event), file=self._stream, flush=True)
        elif event.kind == "end" or self._throttle.due():
            # Metrics of an epoch that fell between two lines are still in the next line.
            print(logfmt(replace(event, metrics=dict(self._metrics))), file=self._stream, flush=True)


class TerminalDisplay:
    """A live bar: epoch, step, metrics, rows per second, time to go."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=Console(file=stream),
            transient=False,
        )
        self._task = self._progress.add_task("starting", total=None, numbers="")
        self._metrics: dict[str, float] = {}
        self._moved = False

    def __call__(self, event: Event) -> None:
        """Move the bar, or print a message above it."""
        if event.kind in TOLD:
            if self._moved:
                self._progress.console.print(event.message, markup=False, highlight=False)
            else:
                self._progress.update(self._task, description=event.message)
            return
        self._moved = True
        self._metrics.update(event.metrics)
        description = event.message or (f"epoch {event.epoch}/{event.epochs}" if event.epochs else event.kind)
        self._progress.update(
            self._task,
            description=description,
            total=event.steps or None,
            completed=event.step,
            numbers="  ".join(_numbers(event, self._metrics)),
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class NotebookDisplay(PlainDisplay):
    """One display, updated in place."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._throttle = Throttle(0.5, clock=clock)
        self._metrics: dict[str, float] = {}
        self._place = NotebookPlace()
        self._told = ""
        self._latest: Event | None = None

    def __call__(self, event: Event) -> None:
        """Update the display, at most twice a second within an epoch; a message stays until the next one."""
        self._metrics.update(event.metrics)
        if event.kind in TOLD and self._latest is not None:
            self._told, event = event.message, self._latest
        elif event.kind not in TOLD:
            self._latest = event
            if event.kind == "step" and not self._throttle.due():
                return
        self._place.show(notebook_html(event, self._metrics, told=self._told))


def notebook_html(event: Event, metrics: Mapping[str, float], *, told: str = "") -> str:
    """Return the bar and numbers of a notebook's display, and below them what was told last."""
    head = event.message or (f"epoch {event.epoch}/{event.epochs}" if event.epochs else event.kind)
    bar = f'<progress value="{event.step}" max="{max(1, event.steps)}" style="width:16em"></progress>'
    below = f"<br><small>{escape(told)}</small>" if told else ""
    return f"<div>{escape(head)} {bar} {escape(' · '.join(_numbers(event, metrics)))}{below}</div>"


def _numbers(event: Event, metrics: Mapping[str, float]) -> list[str]:
    shown = [
        f"{name.removeprefix('validation/')} {value:.4g}"
        for name, value in metrics.items()
        if name != "train/lr" and not name.startswith(COSTS)
    ]
    if event.rows_per_s:
        shown.append(f"{event.rows_per_s:,.0f} rows/s")
    if event.kind in {"step", "epoch"} and event.eta_s is not None:
        minutes, seconds = divmod(round(event.eta_s), 60)
        shown.append(f"{minutes}:{seconds:02d} left")
    return shown
