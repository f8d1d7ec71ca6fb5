"""How a rollout begins, what it forbids, and how a change of deployments ends it. Pure.

``rollout.policy`` decides how it moves in between.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from raymlops.errors import RefusedError
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.state.rollouts import Rollout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from raymlops.config.serve import RolloutSection
    from raymlops.state.store import Deployment, Model


def begin(
    *, rollout_id: str, name: str, version: int, champion: int, settings: RolloutSection, now: datetime
) -> Rollout:
    """Return the rollout of a version at its first step."""
    return Rollout(
        id=rollout_id,
        name=name,
        version=version,
        champion=champion,
        steps=tuple(percent / 100 for percent in settings.steps),
        step=0,
        status="running",
        settings=settings.model_dump(mode="json"),
        started_at=now,
        step_started_at=now,
    )


def refuse_running(model: Model) -> None:
    """Refuse to change traffic that a rollout controls.

    Raises:
        RefusedError: naming the rollout.
    """
    if (found := model.rollout) is not None and found.status == "running":
        raise RefusedError(
            f"version {found.version} of {model.name} is being rolled out: {found.id}, at {100 * found.weight:g}%",
            hint="raymlops status shows it; raymlops rollback or deploy --abort ends it.",
        )


def settled(
    rollout: Rollout, deployments: Sequence[Deployment], *, now: datetime, by: str | None = None
) -> Rollout | None:
    """Return how a running rollout has ended according to the desired state; None if it continues, or ended before.

    ``by`` is the verb by which the champion took the route, if that was not the rollout itself.
    """
    champion = champion_of(deployments)
    if rollout.status != "running":
        return None
    if champion is not None and champion.version == rollout.version:
        made = f"version {rollout.version} was made champion"
        reason = f"{made} by {by}" if by else rollout.reason or made
        return replace(rollout, status="promoted", ended_at=now, reason=reason)
    standing = {item.version: item for item in deployments}
    if champion is None or champion.version != rollout.champion:
        reason = f"version {rollout.champion}, with which it was compared, is no longer champion"
    elif rollout.version not in standing:
        reason = f"version {rollout.version} was taken down"
    elif standing[rollout.version].weight == 0:
        reason = f"version {rollout.version} no longer has a share of the traffic"
    else:
        return None
    return replace(rollout, status="stopped", ended_at=now, reason=reason)
