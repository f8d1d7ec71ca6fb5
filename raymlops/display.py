"""Display progress in a terminal, in a notebook cell or in the log of a job, and write times and sizes.

Owns when and where an event is shown, always on stderr: stdout belongs to the answer. What it shows is defined by its
class, which derives from ``Progress``.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from rich.filesize import decimal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import TextIO

LOG_EVERY_S = 10.0
NOTICES = ("message", "restart")
"""Kinds of events that are a sentence: they move no bar, and are shown whenever they arrive."""

OnEvent = Callable[[Any], None]
Sink = Callable[[str], None]


class Progress:
    """Base of the events that a display shows."""

    kind: str
    """One of ``NOTICES``, ``end``, or a word of the subclass."""
    message: str

    def after(self, _previous: Self) -> Self:
        """Return this event with what it keeps of the previous one."""
        return self

    def pairs(self) -> Mapping[str, Any]:
        """Return the ``key=value`` pairs of its line in a log."""
        raise NotImplementedError

    def renderable(self) -> Any:
        """Return it as a rich table."""
        raise NotImplementedError


class Display:
    """Shows events at most every ``every_s`` seconds; notices and the last event at once.

    A context manager, so that a live table is finished before an error is printed. A display that fails is silent from
    then on: its terminal may be gone, or the reader of its pipe, and what it shows goes on.
    """

    every_s = 0.0
    _failed = False

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._throttle = Throttle(self.every_s, clock=clock)
        self._latest: Progress | None = None

    def __call__(self, event: Progress) -> None:
        """Show one event."""
        if self._failed:
            return
        with self._silenced():
            if event.kind in NOTICES:
                self._notify(event)
                return
            self._latest = event if self._latest is None else event.after(self._latest)
            if event.kind == "end" or self._throttle.due():
                self._update(self._latest)

    def __enter__(self) -> Self:
        with self._silenced():
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._silenced():
            self._stop()

    @contextmanager
    def _silenced(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # also of what renders an event
            self._failed = True

    def _start(self) -> None:
        return

    def _stop(self) -> None:
        return

    def _notify(self, event: Progress) -> None:
        raise NotImplementedError

    def _update(self, event: Progress) -> None:
        raise NotImplementedError


class LogDisplay(Display):
    """Prints one logfmt line at most every ten seconds."""

    every_s = LOG_EVERY_S

    def _notify(self, event: Progress) -> None:
        print(logfmt(event), file=self._stream, flush=True)

    _update = _notify


class TerminalDisplay(Display):
    """Redraws one table four times a second, with notices above it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(stream)
        self._live = Live(console=Console(file=self._stream), refresh_per_second=4, get_renderable=self._render)

    def _start(self) -> None:
        self._live.start()

    def _stop(self) -> None:
        self._live.stop()

    def _render(self) -> Any:
        return "" if self._latest is None else self._latest.renderable()

    def _notify(self, event: Progress) -> None:
        self._live.console.print(event.message, markup=False, highlight=False)

    def _update(self, event: Progress) -> None:
        """Do nothing: the next redraw shows the latest event."""


class NotebookDisplay(Display):
    """Updates one output of the cell, with the last notice below the table. A notebook has IPython."""

    every_s = 0.5

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock=clock)
        self._notice = ""
        self._handle: Any = None

    def _notify(self, event: Progress) -> None:
        self._notice = event.message
        self._show()

    def _update(self, _event: Progress) -> None:
        self._show()

    def _show(self) -> None:
        from IPython.display import display as show  # type: ignore[import-not-found, unused-ignore]
        from rich.table import Table
        from rich.text import Text

        output = Table.grid()
        if self._latest is not None:
            output.add_row(self._latest.renderable())
        if self._notice:
            output.add_row(Text(self._notice, style="dim"))
        if self._handle is None:
            self._handle = show(output, display_id=True)
        else:
            self._handle.update(output)


def display(stream: TextIO | None = None) -> Display:
    """Return the display for ``stream`` (default: stderr) and this process."""
    if _running_in_notebook():
        return NotebookDisplay()
    stream = sys.stderr if stream is None else stream
    return TerminalDisplay(stream) if stream.isatty() else LogDisplay(stream)


def shown(on_event: OnEvent | None) -> AbstractContextManager[OnEvent]:
    """Return the caller's ``on_event``, or a display by default."""
    return display() if on_event is None else nullcontext(on_event)


def _running_in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


class Steps:
    """Announce and time the steps of a verb: ``[2/7] train the winner`` and its outcome."""

    def __init__(self, total: int, *, sink: Sink, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._sink = sink
        self._clock = clock
        self._number = 0
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Run one step; its last line holds what is appended to the yielded list."""
        self._number += 1
        head = f"[{self._number}/{self._total}]"
        self._sink(f"{head} {title}")
        start = self._clock()
        results: list[str] = []
        yield results
        self.seconds[title] = round(self._clock() - start, 1)
        outcome = f": {'; '.join(results)}" if results else ""
        self._sink(f"{' ' * len(head)} {self.seconds[title]:.1f} s{outcome}")


class Throttle:
    """Lets one call in ``every_s`` seconds through."""

    def __init__(self, every_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._last = -math.inf

    def due(self) -> bool:
        """Return whether it is time again, and if so start the next wait."""
        now = self._clock()
        if now - self._last < self._every_s:
            return False
        self._last = now
        return True


def logfmt(event: Progress) -> str:
    """Return an event as one line of ``key=value`` pairs."""
    return logfmt_line(event.pairs())


def logfmt_line(pairs: Mapping[str, Any]) -> str:
    """Return ``key=value`` pairs as one line; values with spaces, quotes or line ends are quoted."""
    return " ".join(f"{key}={_quoted(str(value))}" for key, value in pairs.items())


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Any], str] | None]) -> str:
    """Return rows as an aligned text table; ``columns`` maps a key to its formatter, None for ``str``."""
    cells = [list(columns)] + [[(form or str)(row.get(key, "")) for key, form in columns.items()] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def number_of(count: int, one: str, many: str | None = None) -> str:
    """Return a count with its noun: ``1 study``, ``2 studies``; ``many`` is the plural, by default with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def some_of(texts: Sequence[str], most: int = 5, *, separator: str = ", ") -> str:
    """Return the first texts, and how many more there are."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return f"{separator.join(texts[:most])}{more}"


def shown_value(value: Any) -> str:
    """Return a parameter's value in short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def quiet(*loggers: str, level: int) -> Iterator[None]:
    """Show only messages of at least ``level`` of these loggers for the block."""
    before = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    for logger in before:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, own in before.items():
            logger.setLevel(own)


def duration(seconds: float) -> str:
    """Return seconds as ``1:05``, ``1:01:05`` or ``2 d 3 h``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def utc_time(text: Any) -> str:
    """Return a stored ISO 8601 time in short, in UTC; ``?`` where it cannot be read."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (TypeError, ValueError):
        return "?"


def file_size(size_bytes: int) -> str:
    """Return a size with one decimal, in powers of ten."""
    return decimal(size_bytes)


def _quoted(value: str) -> str:
    plain = value and not any(character in value for character in ' "=\n')
    return value if plain else json.dumps(value, ensure_ascii=False)
