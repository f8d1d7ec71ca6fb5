"""Where progress is shown: a terminal, a notebook or the log of a job, and how often.

Owns what runs and sweeps share. Knows nothing of either.
"""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


LOG_EVERY_S = 10.0

Kind = Literal["terminal", "notebook", "log"]


def kind_for(*, isatty: bool, in_notebook: bool) -> Kind:
    """Choose a display."""
    if in_notebook:
        return "notebook"
    return "terminal" if isatty else "log"


def running_in_notebook() -> bool:
    """Return whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


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


def logfmt_line(pairs: Mapping[str, Any]) -> str:
    """Return ``key=value`` pairs as one line, quoted where a value asks for it."""
    return " ".join(f"{key}={_quoted(str(value))}" for key, value in pairs.items())


class PlainDisplay:
    """Base of a display that has nothing to open or to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


class NotebookPlace:
    """One output of a notebook cell, updated in place; it needs IPython, which a notebook has."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, html: str) -> None:
        """Show the HTML, in place of what was shown before."""
        from IPython.display import HTML  # type: ignore[import-not-found, unused-ignore]
        from IPython.display import display as show

        if self._handle is None:
            self._handle = show(HTML(html), display_id=True)
        else:
            self._handle.update(HTML(html))


def _quoted(value: str) -> str:
    if value and not any(character in value for character in ' "=\n'):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
