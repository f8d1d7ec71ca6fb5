"""Shares of the traffic for versions beside the champion: what ``deploy --canary`` and ``--shadow`` ask for, and get.

``policy`` decides how a rollout moves, and the controller moves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from raymlops.config.serve import RolloutSection
from raymlops.errors import UsageError
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.records import DeploymentRecord
from raymlops.state.rollouts import STARTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.lifecycle.live.change import Changed


@dataclass(frozen=True)
class TrafficRecord(DeploymentRecord):
    """A version beside the champion, and its traffic. ``previous_version`` is the champion."""

    weight: float = 0.0
    """Share of the requests that it answers, 0 to 1."""
    shadow: float = 0.0
    """Share of the requests that are copied to it, 0 to 1."""
    rollout_id: str | None = None
    """Of the rollout that was started or ended; None for a fixed share."""
    outlook: tuple[str, ...] = ()
    """What a rollout that was started can show with the traffic of the last hour, in sentences."""


@dataclass(frozen=True)
class TrafficRequest:
    """The requested shares of a version; None leaves a share unchanged."""

    weight: float | None = None
    shadow: float | None = None
    rollout: RolloutSection | None = None
    """How the weight rises; None keeps it fixed."""

    @property
    def changes(self) -> bool:
        """Return whether any share is requested."""
        return self.weight is not None or self.shadow is not None

    @property
    def removes(self) -> bool:
        """Return whether shares are only removed."""
        return self.changes and not self.weight and not self.shadow

    @property
    def action(self) -> str:
        """Return the action of its audit event."""
        return STARTED if self.rollout else "deploy.canary" if self.weight is not None else "deploy.shadow"

    def goal(self, champion: int) -> dict[str, Any]:
        """Return what a version gets once it is up, beside the champion with whose signature its own was compared."""
        rollout = None if self.rollout is None else self.rollout.model_dump(mode="json")
        return {"champion": champion, "weight": self.weight, "shadow": self.shadow, "rollout": rollout}

    def words(self) -> str:
        """Return the request as text for the audit record."""
        said = [] if self.weight is None else [f"answers {100 * self.weight:g}%"]
        said += [] if self.shadow is None else [f"copies of {100 * self.shadow:g}%"]
        said += [f"steps {', '.join(f'{step:g}' for step in self.rollout.steps)}%"] if self.rollout else []
        return ", ".join(said)


def requested_traffic(
    *,
    canary: float | None,
    steps: Sequence[float] | None,
    bake_s: float | None,
    shadow: float | None,
    settings: RolloutSection,
) -> TrafficRequest:
    """Return the shares that the percentages of a command line request.

    With ``steps`` or ``bake_s`` the weight rises by itself, starting at ``canary`` if that is below the first step;
    with ``canary`` alone it is fixed.

    Raises:
        UsageError: invalid or contradictory percentages.
    """
    for name, percent in (("canary", canary), ("shadow", shadow)):
        if percent is not None and not 0 <= percent <= 100:
            raise UsageError(f"{name} is a percentage from 0 to 100, got {percent:g}")
    share = None if shadow is None else shadow / 100
    if steps is None and bake_s is None:
        return TrafficRequest(None if canary is None else canary / 100, share)
    wanted = tuple(float(step) for step in (settings.steps if steps is None else steps))
    if canary is not None:
        above = tuple(step for step in wanted if step > canary)
        if steps is not None and len(above) < len(wanted) - (wanted[:1] == (canary,)):
            raise UsageError(
                f"a canary of {canary:g}% cannot be followed by the steps {list(wanted)}",
                hint=f"Leave --canary out, or begin the steps with it: --steps {canary:g},50,100",
            )
        wanted = (canary, *above)
    try:
        rollout = RolloutSection.model_validate(
            settings.model_dump() | {"steps": wanted} | ({} if bake_s is None else {"bake_s": float(bake_s)})
        )
    except ValidationError as error:
        raise UsageError(f"no such rollout: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    return TrafficRequest(rollout.steps[0] / 100, share, rollout)


def traffic_record(done: Changed, version: int, *, digest: str = "") -> TrafficRecord:
    """Return what a version has beside the champion after a change; ``digest`` is its bundle's if it is not up."""
    item, champion = done.after.item(version), champion_of(done.after.deployments)
    rollouts = [model.rollout for model in (done.after, done.before) if model.rollout is not None]
    return TrafficRecord(
        name=done.after.name,
        version=version,
        digest=item.bundle.digest if item else digest,
        role="warm",
        url=None,
        previous_version=champion.version if champion else None,
        changed=done.changed,
        warnings=done.warnings,
        weight=item.weight if item else 0.0,
        shadow=item.shadow if item else 0.0,
        rollout_id=next((rollout.id for rollout in rollouts if rollout.version == version), None),
    )
