"""How a sweep shows its progress: a live table on a terminal, a line each 10 s in a log, one display in a notebook.

Owns the events of a sweep and their rendering, always on stderr: stdout belongs to the answer. Knows nothing of
Ray, Optuna or MLflow. A display is a context manager, so that a live table is gone when an error is printed.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TextIO

from raymlops.training.progress import (
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

    from raymlops.config.space import Scalar

EventKind = Literal["started", "epoch", "ended", "end"]
ROWS = 10


@dataclass(frozen=True, slots=True)
class TrialView:
    """One trial as it stands. ``value`` is the sweep's metric at its best epoch so far."""

    number: int
    params: Mapping[str, Scalar]
    state: str
    """``running``, ``complete``, ``pruned`` or ``failed``."""
    epoch: int = 0
    value: float | None = None


@dataclass(frozen=True, slots=True)
class SweepEvent:
    """Something happened to trial ``number``, or the sweep ended (``end``); the rest is how it stands after that."""

    kind: EventKind
    number: int | None
    trials: tuple[TrialView, ...]
    total: int
    """Trials that the sweep is to run."""
    metric: str
    best: TrialView | None
    """The best of those that ran to their end."""
    elapsed_s: float
    eta_s: float | None
    """Seconds left at the rate so far; None before the first trial ended."""

    def counts(self) -> dict[str, int]:
        """Return how many trials are in each state."""
        counts = dict.fromkeys(("running", "complete", "pruned", "failed"), 0)
        for view in self.trials:
            counts[view.state] += 1
        return counts


class SweepDisplay(Protocol):
    """Shows the events of a sweep."""

    def __call__(self, event: SweepEvent) -> None:
        """Show how the sweep stands."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def display(stream: TextIO | None = None) -> SweepDisplay:
    """Return the display for ``stream`` (default: stderr) and this process."""
    stream = sys.stderr if stream is None else stream
    kind = kind_for(isatty=stream.isatty(), in_notebook=running_in_notebook())
    if kind == "notebook":
        return NotebookDisplay()
    return TerminalDisplay(stream) if kind == "terminal" else LogDisplay(stream)


def logfmt(event: SweepEvent) -> str:
    """Return how the sweep stands as one line of ``key=value`` pairs."""
    counts = event.counts()
    ended = len(event.trials) - counts["running"]
    pairs = {"event": "sweep", "trials": f"{ended}/{event.total}"} | {name: str(n) for name, n in counts.items()}
    if event.best is not None and event.best.value is not None:
        pairs |= {"metric": event.metric, "best": f"{event.best.value:.5g}", "best_trial": str(event.best.number)}
        pairs |= {name: shown(value) for name, value in event.best.params.items()}
    pairs["elapsed_s"] = f"{event.elapsed_s:.1f}"
    if event.eta_s is not None and event.kind != "end":
        pairs["eta_s"] = f"{event.eta_s:.0f}"
    return logfmt_line(pairs)


def shown(value: Scalar) -> str:
    """Return a parameter's value, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class LogDisplay(PlainDisplay):
    """One logfmt line at most every ten seconds, and the last one in any case."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._throttle = Throttle(LOG_EVERY_S, clock=clock)

    def __call__(self, event: SweepEvent) -> None:
        """Print the event, if it is time."""
        if event.kind == "end" or self._throttle.due():
            print(logfmt(event), file=self._stream, flush=True)


class TerminalDisplay:
    """A live table: the best trial, those that run, and the last ones that ended."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(file=stream), refresh_per_second=4, transient=False)

    def __call__(self, event: SweepEvent) -> None:
        """Put the event into the table."""
        # Rendered by rich's own thread four times a second at most, however fast events come.
        self._live.update(table(event))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


class NotebookDisplay(PlainDisplay):
    """One display, updated in place."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._throttle = Throttle(0.5, clock=clock)
        self._place = NotebookPlace()

    def __call__(self, event: SweepEvent) -> None:
        """Update the display, if it is time."""
        if event.kind != "end" and not self._throttle.due():
            return
        self._place.show(notebook_html(event))


def table(event: SweepEvent) -> Any:
    """Return the sweep as a rich table."""
    from rich.table import Table

    built = Table(title=headline(event), title_justify="left", title_style="", box=None, pad_edge=False, expand=True)
    for name, justify in (("trial", "right"), ("state", "left"), ("epoch", "right"), (event.metric, "right")):
        built.add_column(name, justify=justify, header_style="dim")  # type: ignore[arg-type]
    built.add_column("parameters", header_style="dim", no_wrap=True, overflow="ellipsis", ratio=1)
    styles = {"complete": "green", "pruned": "dim", "failed": "red", "running": ""}
    for view in rows(event):
        best = event.best is not None and view.number == event.best.number
        style = "bold green" if best else styles[view.state]
        built.add_row(*_cells(view), style=style)
    return built


def headline(event: SweepEvent) -> str:
    """Return how many trials are in each state, and the time."""
    counts = event.counts()
    ended = len(event.trials) - counts["running"]
    parts = [f"{ended}/{event.total} trials", *(f"{n} {name}" for name, n in counts.items() if n)]
    parts.append(_clock(event.elapsed_s))
    if event.eta_s is not None and event.kind != "end":
        parts.append(f"{_clock(event.eta_s)} left")
    return "  ".join(parts)


def rows(event: SweepEvent) -> list[TrialView]:
    """Return the trials to show: the best, those that run, and the latest others, at most ``ROWS``, by number."""
    best = {event.best.number} if event.best is not None else set()
    running = {view.number for view in event.trials if view.state == "running"}
    chosen = set(sorted(best | running, reverse=True)[:ROWS]) | best
    for view in reversed(event.trials):
        if len(chosen) >= ROWS:
            break
        chosen.add(view.number)
    return [view for view in event.trials if view.number in chosen]


def notebook_html(event: SweepEvent) -> str:
    """Return the table of a notebook's display."""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("trial", "state", "epoch", event.metric, "parameters"))
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in _cells(view)) for view in rows(event)]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div>{escape(headline(event))}<table><tr>{head}</tr>{body}</table></div>"


def _cells(view: TrialView) -> tuple[str, ...]:
    params = "  ".join(f"{name.rpartition('.')[2]}={shown(value)}" for name, value in view.params.items())
    value = "" if view.value is None else f"{view.value:.5g}"
    return (str(view.number), view.state, str(view.epoch or ""), value, params)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
