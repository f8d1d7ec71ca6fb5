"""How long a model is away while one version replaces another, as the audit record has measured it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.lifecycle.live.lineup import BEGUN, ROUTE_ACTIONS, champions_in

if TYPE_CHECKING:
    from collections.abc import Iterable

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


def outage(old: int, changes: Iterable[AuditEvent]) -> str:
    """Return what happens to callers while the version ``old`` is replaced, as a sentence."""
    found = last_start(changes)
    if found is None:
        how_long = "no start has been measured yet"
    else:
        how_long = f"version {found[0]} took {found[1]:.0f} s to come up"
    return f"version {old} ends first, and nobody answers until the next one is up ({how_long})"
