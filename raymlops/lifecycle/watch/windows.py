"""Hours of a model's prediction log as windows of traffic: their profiles, added up.

Owns which hours make a window. It begins a whole number of its lengths after the start of 1970, in UTC. One that has an
hour without a profile on the wanted layouts is incomplete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raymlops.monitor.baseline import Window
from raymlops.profiles.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.predictions.hourly import HourProfile
    from raymlops.profiles.layout import Cells, Layout


@dataclass
class _Part:
    counts: Cells
    uncounted: int = 0


class Windows:
    """The windows of one side of a model's traffic, ``features`` or ``predictions``."""

    def __init__(self, *, side: str, layout: Layout, window_s: float) -> None:
        self._side = side
        self._layout = layout
        self._window_s = window_s
        self._parts: dict[int, _Part] = {}

    def add(self, hour: HourProfile) -> None:
        """Add an hour of one version to its window."""
        at = int(hour.start.timestamp() // self._window_s)
        part = self._parts.setdefault(at, _Part(np.zeros(self._layout.size, np.int64)))
        profile = hour.profiles.get(self._side)
        if profile is None:
            part.uncounted += 1
        else:
            part.counts += profile.counts

    def ended(self, now_s: float) -> tuple[Window, ...]:
        """Return the windows that ended by a time, in order, incomplete ones too."""
        return tuple(self._window(at) for at in sorted(self._parts) if (at + 1) * self._window_s <= now_s)

    def counted(self, now_s: float) -> tuple[Window, ...]:
        """Return those of them of which every hour is counted."""
        return tuple(one for one in self.ended(now_s) if not self.uncounted(one))

    def uncounted(self, window: Window) -> int:
        """Return how many hours of a window have no profile."""
        return self._part(window).uncounted

    def profiles(self, windows: Sequence[Window]) -> list[Profile]:
        """Return the profiles of windows."""
        return [Profile(self._layout, self._part(window).counts) for window in windows]

    def _part(self, window: Window) -> _Part:
        return self._parts[round(window.start_s / self._window_s)]

    def _window(self, at: int) -> Window:
        # Of a sampled log the rows that were read: what they stand for says nothing of how much chance there is.
        rows = Profile(self._layout, self._parts[at].counts).read
        return Window(at * self._window_s, (at + 1) * self._window_s, rows)
