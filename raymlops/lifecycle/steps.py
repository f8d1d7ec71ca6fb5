"""Numbered steps with their seconds, for verbs that take minutes.

Owns the lines; the clock and the sink are arguments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Sink = Callable[[str], None]


class Steps:
    """Announce and time the steps of a verb: ``[2/7] train the winner`` and what came of it."""

    def __init__(self, total: int, *, sink: Sink, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._sink = sink
        self._clock = clock
        self._number = 0
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Run one step; what is appended to the yielded list stands on its last line."""
        self._number += 1
        head = f"[{self._number}/{self._total}]"
        self._sink(f"{head} {title}")
        start = self._clock()
        results: list[str] = []
        yield results
        self.seconds[title] = round(self._clock() - start, 1)
        outcome = f": {'; '.join(results)}" if results else ""
        self._sink(f"{' ' * len(head)} {self.seconds[title]:.1f} s{outcome}")
