"""When a model or a version was away, and how long that takes at a replacement, by the audit record. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raymlops.lifecycle.live.lineup import BEGUN, ROUTE_ACTIONS, champions_in

if TYPE_CHECKING:
    from collections.abc import Iterable

    from raymlops.state.audit import AuditEvent

_SHARED = ("version", "role", "weight", "shadow")
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


def few(event: AuditEvent) -> AuditEvent:
    """Return a change with what ``shares`` needs of its deployments: a long history of whole ones is a gigabyte."""
    before, after = ([{key: item.get(key) for key in _SHARED} for item in side] for side in (event.before, event.after))
    return replace(event, before=before, after=after)


def shares(
    changes: Iterable[AuditEvent], version: int | None = None, *, shadows: bool = False
) -> list[tuple[datetime, datetime, float]]:
    """Return which share of the requests a version, or the model, got from when to when, newest first.

    ``changes`` are all of the model's, newest first. Times of which no record says it are left out, as that before the
    first one; of the model only absences are told. With ``shadows`` a shadow's share counts as one of the route.
    """
    if version is None:
        return [(start, stop, 0.0) for start, stop in absences(changes)]
    found = list[tuple[datetime, datetime, float]]()
    until, then = datetime.max.replace(tzinfo=UTC), None
    for event in changes:
        share = _share(event.after, version, shadows=shadows)
        if event.ts < until and then in {None, share}:
            found.append((event.ts, until, share))
        until, then = event.ts, _share(event.before, version, shadows=shadows)
    return found


def absences(changes: Iterable[AuditEvent]) -> list[tuple[datetime, datetime]]:
    """Return from when to when no version was champion; newest first.

    ``changes`` are those of the route, newest first. What was before the first one, or since the newest, is none.
    """
    found: list[tuple[datetime, datetime]] = []
    back: datetime | None = None
    for event in changes:
        had, has = (_is_live(side) for side in (event.before, event.after))
        if back is not None and had and not has:
            found.append((event.ts, back))
        if has or had:  # what came back was there already, or was there until this change
            back = event.ts if has and not had else None
    return found


def _is_live(deployments: Iterable[dict[str, Any]]) -> bool:
    return any(item["role"] == "champion" for item in deployments)


def _share(deployments: Iterable[dict[str, Any]], version: int, *, shadows: bool) -> float:
    deployments = [*deployments]
    ours = next((item for item in deployments if item["version"] == version), None)
    if ours is None:
        return 0.0
    if ours["role"] == "champion":
        return max(0.0, 1.0 - sum(item.get("weight") or 0.0 for item in deployments))
    return float((ours.get("weight") or 0.0) + (shadows and (ours.get("shadow") or 0.0)))


def outage(old: int, changes: Iterable[AuditEvent]) -> str:
    """Return what happens to callers while the version ``old`` is replaced, as a sentence."""
    found = last_start(changes)
    if found is None:
        how_long = "no start has been measured yet"
    else:
        how_long = f"version {found[0]} took {found[1]:.0f} s to come up"
    return f"version {old} ends first, and nobody answers until the next one is up ({how_long})"
