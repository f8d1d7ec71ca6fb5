"""Hours of a model's prediction log as windows of traffic: their profiles, added up.

Owns which hours make a window, of all rows and of slices. It begins a whole number of its lengths after the start of
1970, in UTC, and that number is its place among all windows. One that has an hour without a profile on the wanted
layout is incomplete, and one for a part of which nothing was live is interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from raymlops.monitor.baseline import Window
from raymlops.profiles.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from raymlops.predictions.hourly import HourProfile
    from raymlops.profiles.layout import Cells, Layout
    from raymlops.profiles.slices import Slice


_NOTICED = 1 / 24
"""The share of a window for which it may be interrupted: an hour of a day."""


def place_of(moment: datetime, window_s: float) -> int:
    """Return the place of the window that a moment is in."""
    return int(moment.timestamp() // window_s)


def place_from(moment: datetime, window_s: float) -> int:
    """Return the place of the first window that begins at a moment or later."""
    return -int(-moment.timestamp() // window_s)


def span_of(window: Window) -> tuple[datetime, datetime]:
    """Return when a window begins and ends."""
    return datetime.fromtimestamp(window.start_s, UTC), datetime.fromtimestamp(window.stop_s, UTC)


@dataclass
class _Counted:
    counts: dict[Slice | None, Cells]
    uncounted: int = 0


class Windows:
    """The windows of one side of a model's traffic, ``features`` or ``predictions``, as far as their hours were added.

    With a ``version`` they are of its hours alone; ``shares`` say from when to when it, or the model, got which share
    of the requests, as far as that is known.
    """

    def __init__(
        self,
        *,
        side: str,
        layout: Layout,
        window_s: float,
        version: int | None = None,
        shares: Sequence[tuple[datetime, datetime, float]] = (),
        slices: Iterable[Slice] = (),
    ) -> None:
        self.layout = layout
        self._names: dict[Slice | None, str] = {None: side, **{each: each.qualify(side) for each in slices}}
        self._window_s = window_s
        self._version = version
        self._shares = [(start.timestamp(), stop.timestamp(), share) for start, stop, share in shares]
        self._parts: dict[int, _Counted] = {}

    def add(self, hour: HourProfile) -> None:
        """Add an hour of one version to its window."""
        if self._version not in {None, hour.version}:
            return
        at = place_of(hour.start, self._window_s)
        if at not in self._parts:
            self._parts[at] = _Counted({each: np.zeros(self.layout.size, np.int64) for each in self._names})
        part = self._parts[at]
        if any(name not in hour.profiles for name in self._names.values()):
            part.uncounted += 1
            return
        for each, name in self._names.items():
            part.counts[each] += hour.profiles[name].counts

    def within(self, first: int, last: int) -> tuple[Window, ...]:
        """Return the windows that have rows between two places, both included, incomplete ones too."""
        return tuple(self._window(at) for at in sorted(self._parts) if first <= at <= last)

    def counted(self, first: int, last: int) -> tuple[Window, ...]:
        """Return those of them of which every hour is counted, and that are not interrupted."""
        found = self.within(first, last)
        return tuple(one for one in found if not self.uncounted(one) and not self.interrupted(one))

    def uncounted(self, window: Window) -> int:
        """Return how many hours of a window have no profile."""
        return self._part(window).uncounted

    def interrupted(self, window: Window) -> bool:
        """Return whether the hours of a window are not in it alike: hours of a day say little of a day.

        Where a share changed, as much is left out as is lacking of the largest one.
        """
        inside = [
            (min(window.stop_s, stop) - max(window.start_s, start), share)
            for start, stop, share in self._shares
            if start < window.stop_s and stop > window.start_s
        ]
        most = max((share for _, share in inside), default=0.0)
        away = sum(length * (1 - share / most if most else 1.0) for length, share in inside)
        return away > _NOTICED * (window.stop_s - window.start_s)

    def profiles(self, windows: Sequence[Window], chosen: Slice | None = None) -> list[Profile]:
        """Return the profiles of windows, of all their rows or of a slice."""
        return [Profile(self.layout, self._part(window).counts[chosen]) for window in windows]

    def _part(self, window: Window) -> _Counted:
        return self._parts[round(window.start_s / self._window_s)]

    def _window(self, at: int) -> Window:
        # Of a sampled log the rows that were read: what they stand for says nothing of how much chance there is.
        profile = Profile(self.layout, self._parts[at].counts[None])
        return Window(at * self._window_s, (at + 1) * self._window_s, profile.read, profile.rows)
