"""What becomes of incidents by one more verdict, or by a person's decision. Pure.

Owns when an incident opens and is over. Each is of one column, or of one bound; a slice is its column's. Only an
``alarm`` opens one, whatever else is open. It is over once its column was as usual for two days or two windows, so that
every hour of the day was so twice; windows in which it was not judged count neither way. Skew is judged once a version,
so that its incidents stay until a person says that it is normal, or until another version is live. Silence is over with
the first row.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from raymlops.errors import RefusedError
from raymlops.monitor.outcome import ALARM_LEVEL
from raymlops.monitor.own_windows import lag_of
from raymlops.state.watch.incidents import Baseline, Filed, Incident, subject
from raymlops.state.watch.windows import BOUNDED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from raymlops.state.watch.windows import JudgedWindow

OPEN, CLOSE = "incident.open", "incident.close"
ACKNOWLEDGE, KNOWN, REVOKE = "incident.acknowledge", "incident.known", "incident.revoke"
"""Actions of audit events."""


def file_verdict(
    window: JudgedWindow,
    columns: Sequence[str],
    known: Sequence[Incident],
    *,
    calm: Mapping[str, bool] | None = None,
) -> Iterator[Filed]:
    """Yield what follows from a verdict for each incident.

    ``columns`` are all that the window is an alarm for, and ``known`` the open incidents of what it is about. ``calm``
    says of each column that was judged whether it was as usual; None where all others were.
    """
    open_ = {one.column: one for one in known}
    alarm = columns if window.outcome == "alarm" else ()
    moved = dict.fromkeys(subject(column, {*open_, *alarm}) for column in alarm)
    for column in moved:
        if (one := open_.get(column)) is not None:
            yield Filed(replace(one, last_at=window.start, windows=one.windows + 1, quiet_s=0.0))
        else:
            about = (window.name, window.side, window.kind, window.version)
            new = Incident(_id(window, column), *about, _began(window, column), window.start, 1, column)
            yield Filed(new, OPEN, window.reason)
    if window.outcome not in {"waiting", "insufficient"} and window.kind != "skew":
        for column, one in open_.items():
            if column not in moved:
                yield _after(one, window, calm is None or calm.get(column))


def retire(incident: Incident, *, now: datetime, why: str) -> Filed:
    """Return what follows where what an incident is about is no more."""
    gone = incident.closed_at is not None  # by another judge
    return Filed(incident) if gone else Filed(replace(incident, closed_at=now, closed_why=why), CLOSE, why)


def acknowledge(incident: Incident, *, now: datetime, actor: str, why: str) -> Filed:
    """Return what follows where a person says that a column is normal from an incident's first window on.

    Raises:
        RefusedError: it is closed, or of a bound, which says itself what is normal.
    """
    _refuse_closed(incident)
    if incident.kind in BOUNDED:
        raise RefusedError(
            f"incident {incident.id} of {incident.name} is of a bound, which says what is normal",
            hint="--known mutes it until it is within its bound; raymlops deploy changes monitor.quality and "
            "monitor.skill.",
        )
    after = known(incident, now=now, actor=actor, why=why).incident
    after = replace(after, closed_at=now, closed_why=why)
    if incident.kind != "drift":  # which alone says what is normal among what is served
        return Filed(after, ACKNOWLEDGE, why)
    about = (incident.name, incident.side, incident.version)
    baseline = Baseline(*about, incident.opened_at, (incident.column,), why, actor, now)
    return Filed(after, ACKNOWLEDGE, why, baseline)


def rebaselined(incident: Incident, *, now: datetime, actor: str, why: str) -> Filed:
    """Return what follows for an open incident of what got another baseline."""
    return replace(acknowledge(incident, now=now, actor=actor, why=why), baseline=None)


def known(incident: Incident, *, now: datetime, actor: str, why: str) -> Filed:
    """Return what follows where a person knows of an incident: it is muted, and nothing is normal by that.

    Raises:
        RefusedError: it is closed.
    """
    _refuse_closed(incident)
    return Filed(replace(incident, acknowledged_at=now, acknowledged_by=actor, acknowledged_why=why), KNOWN, why)


def revoke(incident: Incident, *, why: str) -> Filed:
    """Return what follows where a person takes back that an incident is normal, or known: it is open and told.

    Raises:
        RefusedError: nobody said so, or it is over by itself.
    """
    if incident.acknowledged_at is None or (incident.closed_at is not None and not incident.is_normal):
        state = "is open" if incident.closed_at is None else "is over"
        raise RefusedError(f"incident {incident.id} of {incident.name} {state}, and was not acknowledged")
    again = replace(incident, acknowledged_at=None, acknowledged_by=None, acknowledged_why=None)
    return Filed(replace(again, closed_at=None, closed_why="", quiet_s=0.0, thread=None, told=""), REVOKE, why)


def _refuse_closed(incident: Incident) -> None:
    if incident.closed_at is not None:
        by = f", acknowledged by {incident.acknowledged_by}" if incident.acknowledged_by else ""
        raise RefusedError(
            f"incident {incident.id} of {incident.name} was closed at {incident.closed_at:%Y-%m-%d %H:%M} UTC{by}",
            hint="Whatever is open now has an id of its own; --revoke takes an acknowledgement back.",
        )


def _after(incident: Incident, window: JudgedWindow, calm: bool | None) -> Filed:
    """Return how an incident is after a window in which its column was calm, was not, or was not judged."""
    if calm is None:
        return Filed(incident)
    length = window.stop - window.start
    quiet = timedelta(seconds=incident.quiet_s) + length if calm else timedelta()
    after = replace(incident, quiet_s=quiet.total_seconds())
    if incident.kind == "silence":
        return Filed(replace(after, closed_at=window.judged_at, closed_why=window.reason), CLOSE, window.reason)
    if quiet < 2 * lag_of(length.total_seconds()) * length:
        return Filed(after)
    why = f"as usual for {quiet.total_seconds() / 3600:g} h"
    return Filed(replace(after, closed_at=window.judged_at, closed_why=why), CLOSE, why)


def _by_two(window: JudgedWindow, column: str) -> bool:
    """Return whether a window is an alarm for a column by the one before it as well: both moved, and the same way."""
    if window.kind in BOUNDED or window.p_two is None or window.p_two > ALARM_LEVEL:
        return False
    columns = (one for one in window.details.get("columns", ()) if one["column"] == column)
    running = next((one.get("distance_running") for one in columns), None)
    least = window.details.get("band_running")
    return running is None or least is None or abs(running) >= least


def _began(window: JudgedWindow, column: str) -> datetime:
    """Return when what a window is an alarm by began: with the first of two running, where it is by two."""
    length = window.stop - window.start
    return window.start - lag_of(length.total_seconds()) * length if _by_two(window, column) else window.start


def _id(window: JudgedWindow, column: str) -> str:
    """Return the same id whoever judges the window."""
    times = (window.start.isoformat(), window.stop.isoformat())
    parts = (window.name, window.side, window.kind, str(window.version), *times, column)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]
