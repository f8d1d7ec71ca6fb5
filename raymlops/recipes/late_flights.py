"""Flights as somebody has them whose labels come a week late."""

from __future__ import annotations

from datetime import timedelta

from raymlops.recipe import Splits, Window
from raymlops.recipes.flights import Flights

LABEL_LAG = timedelta(days=7)
"""Between a request and its label."""


class LateFlights(Flights):
    """The shipped recipe; at a window's end, labels are known of rows that are a week older."""

    config: Flights.Config

    def datasets(self, window: Window | None = None) -> Splits:
        """Return the flights of a window whose labels are known by its end."""
        return super().datasets(None if window is None else Window(window.start, window.stop - LABEL_LAG))
