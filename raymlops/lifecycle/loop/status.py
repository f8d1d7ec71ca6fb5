"""What ``status`` says of a model's loop: what it waits for, where a retraining is, and how the last one ended.

Reads the state alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.lifecycle.live.lineup import champion_of, retrained
from raymlops.lifecycle.loop.facts import facts_of
from raymlops.lifecycle.loop.log_tables import LogTables
from raymlops.lifecycle.loop.next_step import TRAINED_ON
from raymlops.monitor.retraining import Waiting, decide

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from raymlops.state.loop import Retraining
    from raymlops.state.store import State


def loop_status(state: State, name: str, *, now: datetime) -> dict[str, Any] | None:
    """Return what the loop of a model waits for, as plain data; None where nothing is configured and nothing was."""
    champion = champion_of(state.deployments(name))
    if champion is None:
        return None
    policy, facts = retrained(champion), facts_of(state, name, now=now)
    if not policy.triggers.any and not facts.retrainings and facts.freeze is None:
        return None
    open_ = next((one for one in facts.retrainings if one.is_open), None)
    last = next((one for one in facts.retrainings if not one.is_open), None)
    found = decide(facts, policy, now=now)
    until = found.until if isinstance(found, Waiting) else None
    return {
        "autonomy": policy.autonomy,
        "waits": found.why if isinstance(found, Waiting) else f"due: {found.why}",
        "until": None if until is None else until.isoformat(),
        "open": None if open_ is None else open_.to_dict(),
        "last": None if last is None else last.to_dict(),
        "freeze": None if facts.freeze is None else facts.freeze.to_dict(),
        "lines": [
            *([facts.freeze.text()] if facts.freeze is not None else []),
            *(_told(open_) if open_ is not None else [f"{policy.autonomy}: {_waits(found)}"]),
            *(_told(last, "last: ") if last is not None else []),
        ],
    }


def loop_lines(found: Mapping[str, Any] | None) -> str | None:
    """Return that as lines."""
    return None if found is None else "\n".join(found["lines"])


def _told(one: Retraining, prefix: str = "") -> list[str]:
    """Return a retraining as lines: where it is, and what it is trained on where that is the prediction log."""
    data = one.found.get(TRAINED_ON)
    said = [] if data is None else [f"trained on {LogTables.from_dict(data).sentence()}"]
    return [f"{prefix}{one.text()}", *said]


def _waits(found: Any) -> str:
    if not isinstance(found, Waiting):
        return f"due: {found.why}"
    return "held by the freeze" if found.kind == "frozen" else found.why
