"""What ``status`` says of a model's traffic: the newest verdicts, incidents, and messages that somebody lacks.

Reads the state alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.display import utc_time
from raymlops.lifecycle.watch.window_drift import SIDES
from raymlops.state.watch.incidents import incidents_of
from raymlops.state.watch.windows import about, newest_window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.state.store import State
    from raymlops.state.watch.messages import Message
    from raymlops.state.watch.windows import JudgedWindow


def newest_verdicts(state: State, name: str, champion: int) -> dict[str, JudgedWindow]:
    """Return by side the newest verdict on drift that is about the champion, or about all versions."""
    found = {side: newest_window(state, name, side=side, version=about(side, champion)) for side in SIDES}
    return {side: window for side, window in found.items() if window is not None}


def drift_status(state: State, name: str, champion: int) -> dict[str, Any] | None:
    """Return the newest verdict on each side and the open incidents as plain data; None where nothing was judged."""
    newest = newest_verdicts(state, name, champion)
    open_ = incidents_of(state, name, open_only=True)
    if not newest and not open_:
        return None
    return {
        "windows": [
            {
                "side": one.side,
                "outcome": one.outcome,
                "start": one.start.isoformat(),
                "stop": one.stop.isoformat(),
                "reason": one.reason,
                "against": one.against,
                "own_windows": one.details.get("own_windows"),
            }
            for one in newest.values()
        ],
        "incidents": [{**one.to_dict(), "text": one.text()} for one in open_],
    }


def drift_lines(found: Mapping[str, Any] | None) -> str | None:
    """Return them as lines."""
    if found is None:
        return None
    lines = []
    for one in found["windows"]:
        own = "" if one["own_windows"] is None else f", by {one['own_windows']} own windows"
        why = f": {one['reason']}" if one["outcome"] in {"waiting", "insufficient"} else own
        lines.append(f"{one['side']} {one['outcome']} until {utc_time(one['stop'])}{why}")
    return "\n".join([*lines, *(one["text"] for one in found["incidents"])])


def quality_status(state: State, name: str, champion: int) -> dict[str, Any] | None:
    """Return the newest verdict on the champion by its labels, as plain data; None where none was judged."""
    newest = newest_window(state, name, side="outputs", version=champion, kind="skill")
    if newest is None:
        return None
    verdict, coverage = newest.details["verdict"], newest.details["coverage"]
    return {
        "outcome": newest.outcome,
        "verdict": verdict["outcome"],
        "reason": newest.reason,
        "until": newest.stop.isoformat(),
        "lost": verdict["lost"],
        "labelled": coverage["labelled"],
        "half_lag_s": coverage["half_lag_s"],
    }


def quality_line(found: Mapping[str, Any] | None) -> str | None:
    """Return it as a line."""
    if found is None:
        return None
    half = found["half_lag_s"]
    lag = "" if half is None else f", half of these within {half / 3600:.3g} h"
    return (
        f"{found['verdict']} until {utc_time(found['until'])}: {found['reason']}\n"
        f"{found['labelled']:.0%} of its last window's rows have a label{lag}"
    )


def undelivered(unsent: Sequence[Message]) -> dict[str, Any] | None:
    """Return what is to be told of messages that some messenger lacks after an attempt, as plain data."""
    tried = [one.to_dict() for one in unsent if one.attempts]
    if not tried:
        return None
    oldest = tried[0]
    return {
        "waiting": len(tried),
        "since": oldest["created_at"],
        "reason": oldest["last_error"],
        "retry_at": min(one["retry_at"] for one in tried),
    }


def undelivered_text(found: Mapping[str, Any] | None) -> str | None:
    """Return that as lines."""
    if found is None:
        return None
    since, again = utc_time(found["since"]), utc_time(found["retry_at"])
    return f"{found['waiting']} not delivered: {found['reason']}\nsince {since}; tried again at {again}"
