"""Hours of a model's prediction log as windows of traffic: their profiles, added up.

Owns which hours make a window. It begins a whole number of its lengths after the start of 1970, in UTC, and that number
is its place among all windows. One that has an hour without a profile on the wanted layout is incomplete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raymlops.monitor.baseline import Window
from raymlops.profiles.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from raymlops.predictions.hourly import HourProfile
    from raymlops.profiles.layout import Cells, Layout


def place_of(moment: datetime, window_s: float) -> int:
    """Return the place of the window that a moment is in."""
    return int(moment.timestamp() // window_s)


@dataclass
class _Part:
    counts: Cells
    uncounted: int = 0


class Windows:
    """The windows of one side of a model's traffic, ``features`` or ``predictions``, as far as their hours were added.

    With a ``version`` they are of its hours alone.
    """

    def __init__(self, *, side: str, layout: Layout, window_s: float, version: int | None = None) -> None:
        self.layout = layout
        self._side = side
        self._window_s = window_s
        self._version = version
        self._parts: dict[int, _Part] = {}

    def add(self, hour: HourProfile) -> None:
        """Add an hour of one version to its window."""
        if self._version not in {None, hour.version}:
            return
        at = place_of(hour.start, self._window_s)
        part = self._parts.setdefault(at, _Part(np.zeros(self.layout.size, np.int64)))
        profile = hour.profiles.get(self._side)
        if profile is None:
            part.uncounted += 1
        else:
            part.counts += profile.counts

    def within(self, first: int, last: int) -> tuple[Window, ...]:
        """Return the windows that have rows between two places, both included, incomplete ones too."""
        return tuple(self._window(at) for at in sorted(self._parts) if first <= at <= last)

    def counted(self, first: int, last: int) -> tuple[Window, ...]:
        """Return those of them of which every hour is counted."""
        return tuple(one for one in self.within(first, last) if not self.uncounted(one))

    def uncounted(self, window: Window) -> int:
        """Return how many hours of a window have no profile."""
        return self._part(window).uncounted

    def profiles(self, windows: Sequence[Window]) -> list[Profile]:
        """Return the profiles of windows."""
        return [Profile(self.layout, self._part(window).counts) for window in windows]

    def _part(self, window: Window) -> _Part:
        return self._parts[round(window.start_s / self._window_s)]

    def _window(self, at: int) -> Window:
        # Of a sampled log the rows that were read: what they stand for says nothing of how much chance there is.
        profile = Profile(self.layout, self._parts[at].counts)
        return Window(at * self._window_s, (at + 1) * self._window_s, profile.read, profile.rows)
