"""What the controller does during a replay, as its state tells: whether it is busy, and what happened since.

Reads the state alone.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from raymlops.lifecycle.loop.comparison import due_until
from raymlops.lifecycle.quality.facts import quality_facts
from raymlops.state.loop import ENDS, retrainings_of
from raymlops.state.watch.incidents import incidents_of
from raymlops.state.watch.windows import judged_windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.state.loop import Stage
    from raymlops.state.store import State

REAL_TIME: frozenset[Stage] = frozenset({"decided", "checking", "training", "gating", "replaying"})
"""Stages of a retraining that take real time; the later ones take that of the replay."""
_ID = 6
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


def is_busy(state: State, name: str) -> bool:
    """Return whether something of a model starts, is trained or evaluated, or is about to."""
    model = state.model(name)
    if model.coming:
        return True
    rolls = model.rollout is not None and model.rollout.status == "running"
    open_ = retrainings_of(state, name, open_only=True)
    stages = {one.stage for one in open_}
    if "baking" in stages and any(due_until(one, quality_facts(state, name, now=state.now())) for one in open_):
        return True
    # Before its rollout has begun, and once that has ended, a retraining that rolls out is about to take a step.
    return bool(stages & REAL_TIME) or ("rolling_out" in stages and not rolls)


def judged_until(state: State, name: str) -> datetime:
    """Return the end of the newest window that was judged."""
    newest = judged_windows(state, name, limit=1)
    return newest[0].stop if newest else _NEVER


class EventLog:
    """Incidents and retrainings of a model in words, each once."""

    def __init__(self, state: State, name: str) -> None:
        self._state = state
        self._name = name
        self._told: set[str] = set()
        self._stages: dict[str, int] = {}
        """How many stages of each retraining were told."""

    def new(self) -> list[str]:
        """Return what happened since the last call."""
        found = [text for text in self._incidents() if text not in self._told]
        self._told.update(found)
        return [*found, *self._retrainings()]

    def _incidents(self) -> Iterator[str]:
        for incident in reversed(incidents_of(self._state, self._name)):
            yield f"incident {incident.id[:_ID]} ({incident.kind} of {incident.side}: {incident.column})"
            if incident.closed_at is not None:
                yield f"incident {incident.id[:_ID]} is over"

    def _retrainings(self) -> Iterator[str]:
        for one in reversed(retrainings_of(self._state, self._name)):
            before, self._stages[one.id] = self._stages.get(one.id, 0), len(one.stages)
            if not (new := one.stages[before:]):
                continue
            # Repeated stages are attempts.
            stages = list(dict.fromkeys(str(stage["stage"]).replace("_", " ") for stage in new))
            version = "" if one.version is None else f", version {one.version}"
            why = f": {one.note}" if one.stage in ENDS - {"done"} else ""
            yield f"retraining {one.id[:_ID]} ({one.trigger}{version}) {' > '.join(stages)}{why}"
