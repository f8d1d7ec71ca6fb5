"""When a model or a version was away, and how long that takes at a replacement, by the audit record. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.lifecycle.live.lineup import BEGUN, ROUTE_ACTIONS, champions_in

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from raymlops.state.audit import AuditEvent

START_ACTIONS = tuple(action + end for action in ROUTE_ACTIONS for end in ("", BEGUN, f"{BEGUN}.undone"))
"""Actions of the audit events that say how long a start took."""


def last_start(changes: Iterable[AuditEvent]) -> tuple[int, float] | None:
    """Return the version that last came up for the route, and how many seconds that took.

    ``changes`` are those of ``START_ACTIONS``, newest first, read only as far as needed. A version that was up already,
    or that nothing answered before, was not measured.
    """
    came_up: AuditEvent | None = None
    became: int | None = None
    for event in changes:
        if came_up is not None and became is not None and event.action == came_up.action + BEGUN:
            return became, (came_up.ts - event.ts).total_seconds()
        was, became = champions_in(event)
        came_up = event if became is not None and became != was else None
    return None


def absences(changes: Iterable[AuditEvent], version: int | None = None) -> list[tuple[datetime, datetime]]:
    """Return from when to when no version was champion, or one got no requests; newest first.

    ``changes`` are those of the route, newest first. What was before the first one, or since the newest, is none.
    """
    found: list[tuple[datetime, datetime]] = []
    back: datetime | None = None
    for event in changes:
        had, has = (_gets_requests(side, version) for side in (event.before, event.after))
        if back is not None and had and not has:
            found.append((event.ts, back))
        if has or had:  # what came back was there already, or was there until this change
            back = event.ts if has and not had else None
    return found


def _gets_requests(deployments: Iterable[dict[str, Any]], version: int | None) -> bool:
    if version is None:
        return any(item["role"] == "champion" for item in deployments)
    ours = (item for item in deployments if item["version"] == version)
    return any(item["role"] == "champion" or item.get("weight") or item.get("shadow") for item in ours)


def outage(old: int, changes: Iterable[AuditEvent]) -> str:
    """Return what happens to callers while the version ``old`` is replaced, as a sentence."""
    found = last_start(changes)
    if found is None:
        how_long = "no start has been measured yet"
    else:
        how_long = f"version {found[0]} took {found[1]:.0f} s to come up"
    return f"version {old} ends first, and nobody answers until the next one is up ({how_long})"
