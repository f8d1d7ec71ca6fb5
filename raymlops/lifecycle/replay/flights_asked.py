"""Weeks of flights as requests with times of their own, and what an upstream fault makes of one of the weeks.

Owns who asks for what and when. Knows nothing of an endpoint, so that its tests need none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.recipes.flights_features import CATEGORICAL, LABEL, NUMERIC

if TYPE_CHECKING:
    from raymlops.recipes.flights_features import Table
    from raymlops.signature import Signature

BEGIN = datetime(2013, 4, 1, 4, tzinfo=UTC)
"""Midnight of New York."""
WEEK = timedelta(days=7)
HOURS = 3
"""An airport asks for all of its flights of so many hours at once: a request."""
ZONE_H = 5
"""Hours between New York and UTC in winter: by so many a fault puts the hour wrong."""


@dataclass(frozen=True)
class Request:
    """Rows that are sent at once, at ``at``, and what became of them."""

    at: datetime
    week: int
    """Of the replay, from 0."""
    rows: list[dict[str, Any]]
    labels: list[int]


def asked(table: Table, signature: Signature, *, weeks: int, fault_week: int | None) -> list[Request]:
    """Return the requests of some weeks in their order; in ``fault_week`` the hour is that of another zone."""
    minute, span = int(BEGIN.timestamp()) // 60, 60 * HOURS
    there = ~np.isnan(table[LABEL]) & (table["moment"] >= minute) & (table["moment"] < minute + weeks * 7 * 24 * 60)
    kept = np.flatnonzero(there)
    slot = (table["moment"][kept] - minute) // span
    _, origin = np.unique(table["origin"][kept].astype(str), return_inverse=True)
    group = slot * (origin.max(initial=0) + 1) + origin
    order = np.argsort(group, kind="stable")
    found = []
    for part in np.split(kept[order], np.flatnonzero(np.diff(group[order])) + 1):
        if not len(part):
            continue
        # Its flights are asked for when the last of them is to be.
        moment = datetime.fromtimestamp(int(table["moment"][part].max()) * 60, UTC)
        week = (moment - BEGIN) // WEEK
        columns = {name: table[name][part] for name in (*CATEGORICAL, *NUMERIC)}
        if week == fault_week:
            columns["hour"] = (columns["hour"] + ZONE_H) % 24
        found.append(Request(moment, week, signature.rows(columns), table[LABEL][part].astype(np.int64).tolist()))
    return sorted(found, key=lambda each: each.at)
