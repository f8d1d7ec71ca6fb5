"""Hours of a model's prediction log as windows of traffic: their profiles, added up.

Owns which hours make a window. It begins a whole number of its lengths after the start of 1970, in UTC. One that has an
hour without a profile on the wanted layouts is incomplete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raymlops.monitor.baseline import Window
from raymlops.profiles.layout import ROWS
from raymlops.profiles.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from raymlops.predictions.hourly import HourProfile
    from raymlops.profiles.layout import Cells, Layout


@dataclass
class _Part:
    counts: Cells
    uncounted: int = 0


class Windows:
    """The windows of one side of a model's traffic: ``features`` over versions, ``predictions`` of one version."""

    def __init__(
        self, hours: Iterable[HourProfile], *, side: str, layout: Layout, window_s: float, version: int | None = None
    ) -> None:
        """Add up ``hours`` of the versions that count: of ``version``, or of all."""
        self._layout = layout
        self._window_s = window_s
        self._version = version
        self._parts: dict[int, _Part] = {}
        for hour in hours:
            if version is not None and hour.version != version:
                continue
            start = int(hour.start.timestamp() // window_s)
            part = self._parts.setdefault(start, _Part(np.zeros(layout.size, np.int64)))
            profile = hour.profiles.get(side)
            if profile is None:
                part.uncounted += 1
            else:
                part.counts += profile.counts

    def complete(self) -> tuple[Window, ...]:
        """Return the windows of which every hour is counted, in the order of time."""
        return tuple(self._window(at) for at in sorted(self._parts) if not self._parts[at].uncounted)

    def newest(self, *, until_s: float) -> Window | None:
        """Return the last window that ends by a time, also where it is incomplete; None where there is none."""
        ended = [at for at in self._parts if (at + 1) * self._window_s <= until_s]
        return self._window(max(ended)) if ended else None

    def uncounted(self, window: Window) -> int:
        """Return how many hours of a window have no profile."""
        return self._part(window).uncounted

    def profiles(self, windows: Sequence[Window]) -> list[Profile]:
        """Return the profiles of windows."""
        return [Profile(self._layout, self._part(window).counts) for window in windows]

    def _part(self, window: Window) -> _Part:
        return self._parts[round(window.start_s / self._window_s)]

    def _window(self, at: int) -> Window:
        rows = int(self._parts[at].counts[ROWS])
        return Window(at * self._window_s, (at + 1) * self._window_s, self._version, rows)
