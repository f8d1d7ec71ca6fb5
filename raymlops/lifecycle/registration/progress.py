"""The progress of a registration that takes long: its stages, with time and memory, on stderr.

Owns what is said and when: nothing in the first ten seconds.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from raymlops.display import LOG_EVERY_S, Throttle, duration, file_size

if TYPE_CHECKING:
    from collections.abc import Callable


class StageProgress:
    """Says which stage a verb is at: each new one, and at most every ten seconds how far it is."""

    def __init__(
        self, on_line: Callable[[str], None] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_line = on_line or _to_stderr
        self._clock = clock
        self._started = clock()
        self._throttle = Throttle(LOG_EVERY_S, clock=clock)
        self._throttle.due()
        self._title = ""
        self._done = 0
        self._total: int | None = None

    def stage(self, title: str, *, batches: int | None = None) -> None:
        """Begin a stage of so many ``batches``, where that is known."""
        self._title, self._done, self._total = title, 0, batches
        if self._clock() - self._started >= LOG_EVERY_S:
            self._throttle.due()
            self._say("")

    def tick(self) -> None:
        """Count a batch of the stage."""
        self._done += 1
        self.alive()

    def alive(self) -> None:
        """Say how far the stage is, if it is time."""
        if self._throttle.due():
            of = "" if self._total is None else f" of {self._total:,}"
            self._say(f": {self._done:,}{of} batches" if self._done else "")

    def _say(self, how_far: str) -> None:
        import psutil

        memory = file_size(psutil.Process().memory_info().rss)
        self._on_line(f"{self._title}{how_far} ({duration(self._clock() - self._started)}, memory {memory})")


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
