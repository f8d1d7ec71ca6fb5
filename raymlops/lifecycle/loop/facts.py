"""What is known of a live model when it is decided whether to retrain it.

Owns where each fact comes from, and which alarms of drift count. Reads the state alone.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from raymlops.lifecycle.live.lineup import champion_of, monitored, retrained
from raymlops.lifecycle.quality.facts import QualityFacts, quality_facts
from raymlops.lifecycle.quality.model import promoted_at
from raymlops.lifecycle.quality.window import believed
from raymlops.monitor.retraining import Alarm, Facts
from raymlops.state.freezes import freeze_of
from raymlops.state.loop import retrainings_of, retrainings_that_count
from raymlops.state.watch.incidents import incidents_of, unacknowledged
from raymlops.state.watch.windows import judged_windows, windows_of_version

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from raymlops.monitor.skill.expected import Window
    from raymlops.state.rollouts import Rollout
    from raymlops.state.store import Deployment, State
    from raymlops.state.watch.incidents import Incident
    from raymlops.state.watch.windows import JudgedWindow

    Quality = Callable[..., QualityFacts]

_LONGEST = timedelta(days=7)
"""Of a window of drift."""


def facts_of(state: State, name: str, *, now: datetime, quality: Quality = quality_facts) -> Facts:
    """Return what is known of a model; of one that is not live, what is open and frozen alone.

    Raises:
        StorageError, UnreachableError: the state cannot be read.
    """
    model = state.model(name)
    champion = champion_of(model.deployments)
    frozen = freeze_of(state, name, now=now)
    if champion is None:
        return Facts(name, freeze=frozen, retrainings=tuple(retrainings_of(state, name, limit=2)))
    policy = retrained(champion)
    triggers, spent_since = policy.triggers, now - timedelta(days=policy.budget_days)
    retrainings, number = retrainings_that_count(state, name, champion=champion.version, since=spent_since)
    since = promoted_at(state, champion)
    asked = triggers.skill or triggers.min_skill is not None or triggers.new_labels is not None
    found = quality(state, name, now=now) if asked else QualityFacts()
    return Facts(
        name=name,
        champion=champion.version,
        champion_run_id=champion.run_id,
        promoted_at=since,
        verdict=found.verdict,
        windows=_skill(state, champion, since, now) if triggers.min_skill is not None else (),
        judged_until=found.until,
        labelled_rows=found.labelled_rows,
        alarms=() if triggers.drift_alarms is None else _alarms(state, name, since),
        incidents=tuple(one.text() for one in model.incidents),
        rollout="" if model.rollout is None else _rollout(model.rollout),
        freeze=frozen,
        retrainings=retrainings,
        number=number,
    )


def _skill(state: State, champion: Deployment, since: datetime, now: datetime) -> tuple[Window, ...]:
    """Return the sums of a champion's labelled windows since its promotion, oldest first."""
    ours = windows_of_version(state, champion.name, champion.version, kind="skill", since=since, until=now)
    return tuple(believed(ours, monitored(champion).skill))


def _alarms(state: State, name: str, since: datetime) -> tuple[Alarm, ...]:
    """Return the windows of inputs that are an alarm, oldest first, but for what a person said is normal, or known."""
    said = [one for one in incidents_of(state, name) if (one.side, one.kind) == ("inputs", "drift")]
    found = [
        Alarm(one.stop, moved)
        for one in judged_windows(state, name, since=since - _LONGEST, kind="drift")
        if (one.side, one.outcome) == ("inputs", "alarm")
        if one.stop > since and (moved := _moved(one, said))
    ]
    return tuple(reversed(found))


def _moved(window: JudgedWindow, said: Sequence[Incident]) -> dict[str, float | None]:
    """Return the influence of the columns that moved, None where nobody knows it."""
    influence = {one["column"]: one.get("influence") for one in window.details.get("columns", ()) if one.get("flagged")}
    return {one: influence.get(one) for one in unacknowledged(influence, said, start=window.start)}


def _rollout(rollout: Rollout) -> str:
    return f"version {rollout.version} is being rolled out (rollout {rollout.id})"
