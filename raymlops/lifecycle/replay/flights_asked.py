"""Weeks of flights as requests with times of their own, and what an upstream fault makes of one of the weeks.

Owns who asks for what and when. Knows nothing of an endpoint, so that its tests need none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from raymlops.arrays import Columns
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


def asked(
    rows: Columns, times: npt.NDArray[Any], signature: Signature, *, label: str, fault_week: int | None
) -> list[Request]:
    """Return rows as requests in the order of their times; in ``fault_week`` the hour is that of another zone."""
    minute = times.astype("datetime64[m]").astype(np.int64)
    slot = (minute - int(BEGIN.timestamp()) // 60) // (60 * HOURS)
    _, origin = np.unique(rows["origin"].astype(str), return_inverse=True)
    group = slot * (origin.max(initial=0) + 1) + origin
    order = np.argsort(group, kind="stable")
    found = []
    for part in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if not len(part):
            continue
        # Its flights are asked for when the last of them is to be.
        moment = datetime.fromtimestamp(int(minute[part].max()) * 60, UTC)
        week = (moment - BEGIN) // WEEK
        columns = {column.name: rows[column.name][part] for column in signature.inputs}
        if week == fault_week:
            columns["hour"] = (columns["hour"] + ZONE_H) % 24
        found.append(Request(moment, week, signature.rows(columns), rows[label][part].astype(np.int64).tolist()))
    return sorted(found, key=lambda each: each.at)
