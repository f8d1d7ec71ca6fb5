"""What becomes of an incident by one more verdict, or by a person's decision. Pure.

Owns when an incident opens, gets worse and is over, and that each of that is told once. Only an ``alarm`` opens one.
It is over once so many windows running are ``ok`` that every hour of the day was so twice, as two windows running
opened it; windows with too few rows for a verdict, and hours of the week that training lacks, count as little as hours
without any. Skew is judged once a version,
so that its incident stays until a person says that it is normal, or until another version is live. Silence is over with
the first row. What is beyond a bound makes nothing normal by being acknowledged: its incident stays open, so that no
other one is told of the same, until it is within its bounds. An incident is told to get worse once; after it was
acknowledged each further bound or column is told once, and by that it is acknowledged no more.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from raymlops.errors import RefusedError
from raymlops.lifecycle.watch.messaging.messages import by_two, message_about
from raymlops.lifecycle.watch.window_drift import FEW_ROWS
from raymlops.monitor.own_windows import lag_of
from raymlops.state.watch.incidents import Baseline, Filed, Incident
from raymlops.state.watch.windows import BOUNDED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from raymlops.state.watch.incidents import Known
    from raymlops.state.watch.messages import Told
    from raymlops.state.watch.windows import JudgedWindow

OPEN, WORSE, CLOSE, ACKNOWLEDGE = "incident.open", "incident.escalate", "incident.close", "incident.acknowledge"
"""Actions of audit events."""


def file_verdict(window: JudgedWindow, columns: Sequence[str], known: Known) -> Filed:
    """Return what follows a verdict; ``columns`` are all that led to it."""
    incident = known.incident
    if window.outcome != "alarm":
        return Filed(incident) if incident is None else _quiet(window, incident, known)
    if incident is None:
        new = Incident(
            _id(window),
            window.name,
            window.side,
            window.kind,
            window.version,
            _began(window),
            window.start,
            1,
            (*columns,),
        )
        return Filed(new, message_about(new, window, "opened"), OPEN, window.reason)
    new_ones = [column for column in columns if column not in incident.columns]
    longer = replace(
        incident,
        last_at=window.start,
        windows=incident.windows + 1,
        columns=(*incident.columns, *new_ones),
    )
    if not new_ones or ("escalated" in known.told and "acknowledged" not in known.told):
        return Filed(longer)
    # Nobody knows of what is new, whoever acknowledged the rest.
    longer = replace(longer, acknowledged_at=None, acknowledged_by=None, acknowledged_why=None)
    return Filed(longer, message_about(longer, window, "escalated", new=new_ones), WORSE, window.reason)


def retire(known: Known, *, now: datetime, why: str) -> Filed:
    """Return what follows where what an incident is about is no more."""
    assert known.incident is not None
    return _closed(known, replace(known.incident, closed_at=now), CLOSE, why, now=now)


def acknowledge(known: Known, *, now: datetime, actor: str, why: str) -> Filed:
    """Return what follows where a person says that what an incident is about is normal, from its first window on.

    What is beyond a bound stays open, and is told no more unless it gets worse.

    Raises:
        RefusedError: it is closed, or was acknowledged.
    """
    incident = known.incident
    assert incident is not None
    if incident.closed_at is not None:
        by = f", acknowledged by {incident.acknowledged_by}" if incident.acknowledged_by else ""
        raise RefusedError(
            f"incident {incident.id} of {incident.name} was closed at {incident.closed_at:%Y-%m-%d %H:%M} UTC{by}",
            hint="Whatever is open now has an id of its own; --rebaseline takes the newest windows for normal.",
        )
    if incident.acknowledged_at is not None:
        at = f"{incident.acknowledged_at:%Y-%m-%d %H:%M} UTC"
        raise RefusedError(
            f"incident {incident.id} of {incident.name} was acknowledged at {at} by {incident.acknowledged_by}",
            hint="It is over once its bounds hold again; monitor.quality and monitor.skill have them, and raymlops "
            "deploy changes them.",
        )
    over = None if incident.kind in BOUNDED else now
    after = replace(incident, closed_at=over, acknowledged_at=now, acknowledged_by=actor, acknowledged_why=why)
    filed = _closed(known, after, ACKNOWLEDGE, why, now=now)
    if incident.kind != "drift":  # which alone says what is normal among what is served
        return filed
    baseline = Baseline(
        incident.name, incident.side, incident.version, incident.opened_at, incident.columns, why, actor, now
    )
    return replace(filed, baseline=baseline)


def rebaselined(known: Known, *, now: datetime, actor: str, why: str) -> Filed:
    """Return what follows for the open incident of what got another baseline."""
    return replace(acknowledge(known, now=now, actor=actor, why=why), baseline=None)


def _quiet(window: JudgedWindow, incident: Incident, known: Known) -> Filed:
    length = window.stop - window.start
    wanted = 1 if incident.kind == "silence" else 2 * lag_of(length.total_seconds())
    alike = [one for one in (*known.since, window) if one.stop - one.start == length]
    judged = [
        one for one in alike if one.outcome != "insufficient" and (one.outcome, one.reason) != ("waiting", FEW_ROWS)
    ]
    outcomes = [one.outcome for one in judged]
    if len(outcomes) < wanted or any(outcome != "ok" for outcome in outcomes[-wanted:]):
        return Filed(incident)
    after = replace(incident, closed_at=window.judged_at)
    if incident.kind == "silence":
        return Filed(after, message_about(after, window, "closed", why=window.reason), CLOSE, window.reason)
    return Filed(after, message_about(after, window, "closed"), CLOSE, f"{wanted} windows running are as usual")


def _closed(known: Known, after: Incident, action: str, why: str, *, now: datetime) -> Filed:
    window = known.window
    what: Told = "acknowledged" if after.closed_at is None else "closed"
    message = None if window is None else message_about(after, replace(window, judged_at=now), what, why=why)
    return Filed(after, message, action, why)


def _began(window: JudgedWindow) -> datetime:
    """Return when what a window is an alarm by began: with the first of two running, where it is by two."""
    if not by_two(window):
        return window.start
    length = window.stop - window.start
    return window.start - lag_of(length.total_seconds()) * length


def _id(window: JudgedWindow) -> str:
    """Return the same id whoever judges the window."""
    times = (window.start.isoformat(), window.stop.isoformat())
    parts = (window.name, window.side, window.kind, str(window.version), *times)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]
