"""How a sweep shows its progress: a live table on a terminal, a line each 10 s in a log, one display in a notebook.

Owns the events of a sweep and their rendering, always on stderr: stdout belongs to the answer. Knows nothing of
Ray, Optuna or MLflow. A display is a context manager, so that a live table is gone when an error is printed.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass
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

    from raymlops.config.space import Scalar
    from raymlops.records import TrialRecord

EventKind = Literal["started", "epoch", "ended", "message", "end"]
ROWS = 10


@dataclass(frozen=True, slots=True)
class TrialView:
    """One trial as it stands. ``value`` is the sweep's metric at its best epoch so far."""

    number: int
    params: Mapping[str, Scalar]
    state: str
    """``running``, ``waiting``, ``complete``, ``pruned`` or ``failed``."""
    epoch: int = 0
    value: float | None = None

    @classmethod
    def ended(cls, record: TrialRecord) -> TrialView:
        """Return how a trial stands that has ended."""
        return TrialView(record.number, record.params, record.status, record.epochs, record.value)


STATES = ("running", "waiting", "complete", "pruned", "failed")


@dataclass(frozen=True, slots=True)
class SweepEvent:
    """Something happened to trial ``number``, or to the sweep; the rest is how it stands after that."""

    kind: EventKind
    number: int | None
    counts: Mapping[str, int]
    """How many trials are in each state; carried ones are not counted."""
    rows: tuple[TrialView, ...]
    """The trials to show: those that run, the latest others and the best, at most ``ROWS``, by number."""
    total: int
    """Trials that the sweep is to run."""
    metric: str
    best: TrialView | None
    """The best of those that ran to their end."""
    elapsed_s: float
    eta_s: float | None
    """Seconds left at the rate so far; None before the first trial ended."""
    message: str = ""
    """What is to be told, of an event ``message``; else empty."""
    cost: str = ""
    """What it took so far, in words."""

    @property
    def ended(self) -> int:
        """Return how many trials have ended."""
        return sum(self.counts.get(state, 0) for state in ("complete", "pruned", "failed"))


def said(message: str, *, total: int) -> SweepEvent:
    """Return an event that says something before the first trial."""
    return SweepEvent("message", None, dict.fromkeys(STATES, 0), (), total, "", None, 0.0, None, message)


class Board:
    """Keeps what an event shows, at a cost that does not grow with the number of trials."""

    def __init__(self) -> None:
        self.best: TrialView | None = None
        self._counts = dict.fromkeys(STATES, 0)
        self._open: dict[int, TrialView] = {}
        self._latest: deque[TrialView] = deque(maxlen=ROWS)

    def put(self, view: TrialView, *, best: bool = False) -> None:
        """Take in how a trial stands now; ``best`` of all that ended so far."""
        before = self._open.pop(view.number, None)
        if before is not None:
            self._counts[before.state] -= 1
        self._counts[view.state] += 1
        if view.state in {"running", "waiting"}:
            self._open[view.number] = view
        else:
            self._latest.append(view)
        if best:
            self.best = view

    @property
    def counts(self) -> dict[str, int]:
        """Return how many trials are in each state."""
        return dict(self._counts)

    def rows(self) -> tuple[TrialView, ...]:
        """Return the trials to show: the best, those that run, and the latest others, at most ``ROWS``, by number."""
        chosen = {} if self.best is None else {self.best.number: self.best}
        for view in [*reversed(self._open.values()), *reversed(self._latest)]:
            if len(chosen) >= ROWS:
                break
            chosen.setdefault(view.number, view)
        return tuple(sorted(chosen.values(), key=lambda view: view.number))


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
    pairs = {"event": "sweep", "trials": f"{event.ended}/{event.total}"}
    pairs |= {name: str(n) for name, n in event.counts.items()}
    if event.best is not None and event.best.value is not None:
        pairs |= {"metric": event.metric, "best": f"{event.best.value:.5g}", "best_trial": str(event.best.number)}
        pairs |= {name: shown(value) for name, value in event.best.params.items()}
    pairs["elapsed_s"] = f"{event.elapsed_s:.1f}"
    if event.eta_s is not None and event.kind != "end":
        pairs["eta_s"] = f"{event.eta_s:.0f}"
    if event.cost:
        pairs["cost"] = event.cost
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
        if event.kind == "message":
            print(logfmt_line({"event": "sweep", "msg": event.message}), file=self._stream, flush=True)
        elif event.kind == "end" or self._throttle.due():
            print(logfmt(event), file=self._stream, flush=True)


class TerminalDisplay:
    """A live table: the best trial, those that run, and the last ones that ended."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.live import Live

        self._throttle = Throttle(0.25, clock=clock)
        self._live = Live(console=Console(file=stream), refresh_per_second=4, transient=False)

    def __call__(self, event: SweepEvent) -> None:
        """Put the event into the table."""
        if event.kind == "message":
            self._live.console.print(event.message, markup=False, highlight=False)
        elif event.kind == "end" or self._throttle.due():
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
        self._told = ""

    def __call__(self, event: SweepEvent) -> None:
        """Update the display, if it is time; a message stays until the next one."""
        if event.kind == "message":
            self._told = event.message
        # Nothing may follow a message for a long time.
        if event.kind in {"message", "end"} or self._throttle.due():
            self._place.show(notebook_html(event, told=self._told))


def table(event: SweepEvent) -> Any:
    """Return the sweep as a rich table."""
    from rich.table import Table

    built = Table(title=headline(event), title_justify="left", title_style="", box=None, pad_edge=False, expand=True)
    for name, justify in (("trial", "right"), ("state", "left"), ("epoch", "right"), (event.metric, "right")):
        built.add_column(name, justify=justify, header_style="dim")  # type: ignore[arg-type]
    built.add_column("parameters", header_style="dim", no_wrap=True, overflow="ellipsis", ratio=1)
    styles = {"complete": "green", "pruned": "dim", "failed": "red", "waiting": "dim", "running": ""}
    for view in event.rows:
        best = event.best is not None and view.number == event.best.number
        style = "bold green" if best else styles[view.state]
        built.add_row(*_cells(view), style=style)
    return built


def headline(event: SweepEvent) -> str:
    """Return how many trials are in each state, the time and what it cost."""
    parts = [f"{event.ended}/{event.total} trials", *(f"{n} {name}" for name, n in event.counts.items() if n)]
    parts.append(_clock(event.elapsed_s))
    if event.eta_s is not None and event.kind != "end":
        parts.append(f"{_clock(event.eta_s)} left")
    return "  ".join([*parts, event.cost] if event.cost else parts)


def notebook_html(event: SweepEvent, *, told: str = "") -> str:
    """Return the table of a notebook's display, and below it what was told last."""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("trial", "state", "epoch", event.metric, "parameters"))
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in _cells(view)) for view in event.rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    below = f"<small>{escape(told)}</small>" if told else ""
    best = "" if event.best is None else f"<br>best {' '.join(map(escape, filter(None, _cells(event.best))))}"
    return f"<div>{escape(headline(event))}{best}<table><tr>{head}</tr>{body}</table>{below}</div>"


def _cells(view: TrialView) -> tuple[str, ...]:
    params = "  ".join(f"{name.rpartition('.')[2]}={shown(value)}" for name, value in view.params.items())
    value = "" if view.value is None else f"{view.value:.5g}"
    return (str(view.number), view.state, str(view.epoch or ""), value, params)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
