"""Progress of a verb of several steps: each step's own display in turn, and lines between them.

Owns which display is open; the displays are those of ``training`` and ``tuning``, all on stderr.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType


class Progress:
    """Shows the events of a training or a sweep, whichever comes; a context manager.

    A line closes the display that is open: two writers on one terminal would overwrite each other.
    """

    def __init__(self) -> None:
        self._kind: type | None = None
        self._display: Any = None

    def __call__(self, event: Any) -> None:
        """Show one event, in the display of its kind."""
        if type(event) is not self._kind:
            self._close()
            self._display = _display_for(event).__enter__()
            self._kind = type(event)
        self._display(event)

    def line(self, text: str) -> None:
        """Print one line below what was shown."""
        self._close()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        display, self._display, self._kind = self._display, None, None
        if display is not None:
            display.__exit__(None, None, None)


def _display_for(event: Any) -> Any:
    from raymlops.training.progress import Event
    from raymlops.training.progress import display as training_display
    from raymlops.tuning.progress import display as sweep_display

    return training_display() if isinstance(event, Event) else sweep_display()
