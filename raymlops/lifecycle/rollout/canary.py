"""Shares of the traffic for versions beside the champion, and how a rollout begins and ends.

Owns the rules of ``deploy --canary`` and ``--shadow``, and the records of a rollout's beginning and end. ``policy``
decides how a rollout moves, and the controller moves it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from raymlops.config.serve import RolloutSection
from raymlops.errors import RefusedError, UsageError
from raymlops.lifecycle.live.change import change
from raymlops.lifecycle.live.lineup import (
    LineUp,
    canaries_of,
    champion_of,
    taken_by,
    with_canary,
    with_shadow,
    without_traffic,
)
from raymlops.lifecycle.rollout.policy import begin
from raymlops.records import DeploymentRecord
from raymlops.state.audit import add_event, changes_of
from raymlops.state.rollouts import running, start_rollout, update_rollout
from raymlops.state.store import deployments_in

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from raymlops.config.serve import ServeSection
    from raymlops.lifecycle.live.change import Change, Cluster
    from raymlops.state.rollouts import Rollout
    from raymlops.state.store import Deployment, State

PROMOTED = "rollout.promote"
"""Action by which a rollout makes its version champion."""


class _PromotedError(Exception):
    """The version whose share was to be removed has become champion."""


@dataclass(frozen=True)
class TrafficRecord(DeploymentRecord):
    """A version beside the champion, and its traffic. ``previous_version`` is the champion."""

    weight: float = 0.0
    """Share of the requests that it answers, 0 to 1."""
    shadow: float = 0.0
    """Share of the requests that are copied to it, 0 to 1."""
    rollout_id: str | None = None
    """Of the rollout that was started or ended; None for a fixed share."""


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


def share(
    state: State,
    cluster: Cluster,
    name: str,
    *,
    version: int,
    champion: int,
    asked: TrafficRequest,
    serve: ServeSection,
    why: str,
    now: datetime,
) -> TrafficRecord:
    """Give a version that is up its requested shares; the weight and its rollout are written together.

    ``champion`` is the version with whose signature its own was compared.

    Raises:
        RefusedError: another version has become champion, a rollout is running, or shares would exceed 100%.
        DeployError: Serve did not take it; the previous state is restored.
    """
    rollout = None
    if asked.rollout is not None:
        rollout = begin(
            rollout_id=uuid.uuid4().hex[:12],
            name=name,
            version=version,
            champion=champion,
            settings=asked.rollout,
            now=now,
        )

    def decide(before: Sequence[Deployment]) -> LineUp:
        if (now_champion := champion_of(before)) is None or now_champion.version != champion:
            raise RefusedError(f"version {champion} of {name} is no longer live", hint="Run the same command again.")
        if all(item.version != version for item in before):
            raise RefusedError(f"version {version} of {name} was taken down", hint="Run the same command again.")
        wanted = list(before)
        if asked.weight is not None:
            refuse_running(state, name)
            others = [item.version for item in canaries_of(before) if item.version != version]
            if rollout is not None and others:
                raise RefusedError(
                    f"version {others[0]} of {name} has a share of the traffic, and a rollout compares two versions",
                    hint="raymlops rollback takes the share away.",
                )
            wanted = with_canary(wanted, version, weight=asked.weight)
        if asked.shadow is not None:
            wanted = with_shadow(wanted, version, share=asked.shadow)
        if asked.removes:  # a version that loses its share may be broken, so that it is not waited for
            return LineUp(wanted, None, frozenset({champion}))
        lineup = LineUp(wanted, version, frozenset({champion, version}))
        if rollout is None:
            return lineup
        failed = replace(rollout, status="stopped", ended_at=now, reason="Serve did not take its first share")
        return replace(
            lineup,
            also=lambda connection: start_rollout(connection, rollout),
            undo=lambda connection: update_rollout(connection, failed),
        )

    action = "rollout.start" if rollout else "deploy.canary" if asked.weight is not None else "deploy.shadow"
    said = f"{why}: {asked.words()}" if why else asked.words()
    done = change(state, cluster, name, decide=decide, serve=serve, action=action, why=said)
    return _changed(done, name, version, rollout_id=rollout.id if rollout else None)


def untouched(deployments: Sequence[Deployment], name: str, version: int, *, digest: str) -> TrafficRecord | None:
    """Return the record of removing the shares of a version that is not up; None if it is up."""
    if any(item.version == version for item in deployments):
        return None
    return _record(name, deployments, version, digest=digest, changed=False)


def abort(
    state: State, cluster: Cluster, name: str, *, serve: ServeSection, why: str, now: datetime, action: str
) -> TrafficRecord | None:
    """Remove the canaries' shares and end the rollout; None if no version has a share and no rollout is running.

    Also None, with nothing changed, if the version has become champion meanwhile. If another process removed the share
    first, nothing is changed, and the record has the current state.

    No version is waited for, and the change stays desired even if Serve does not answer now.
    """
    with state.reading() as connection:
        seen = [found.version for found in running(connection, name)]
        seen += [item.version for item in canaries_of(deployments_in(connection, name))]
    if not seen:
        return None
    ended: list[Rollout] = []

    def decide(before: Sequence[Deployment]) -> LineUp:
        settle(state, name, now=now)  # the verb that made its version champion may have been killed before that
        with state.reading() as connection:
            ended[:] = running(connection, name)
        canaries, champion = canaries_of(before), champion_of(before)
        if not ended and not canaries and champion is not None and champion.version in seen:
            raise _PromotedError
        stopped = [replace(found, status="stopped", ended_at=now, reason=why) for found in ended]

        def also(connection: Connection) -> None:
            for found in stopped:
                update_rollout(connection, found)

        lost = [f"version {item.version} answered {100 * item.weight:g}%" for item in canaries]
        ends = [f"rollout {found.id} of version {found.version} ends" for found in ended]
        said = f"{why}: {', '.join([*lost, *ends])}"
        return LineUp(without_traffic(before), None, frozenset(), also=also if stopped else None, kept=True, why=said)

    try:
        done = change(state, cluster, name, decide=decide, serve=serve, action=action, why=why, hurry=True)
    except _PromotedError:
        return None
    lost = [found.version for found in ended] + [item.version for item in canaries_of(done.before)]
    return _changed(done, name, (lost or seen)[0], rollout_id=ended[0].id if ended else None)


def settled(
    rollout: Rollout, deployments: Sequence[Deployment], *, now: datetime, by: str | None = None
) -> Rollout | None:
    """Return how a running rollout has ended according to the desired state; None if it continues. Pure.

    ``by`` is the verb by which the champion took the route, if that was not the rollout itself.
    """
    champion = champion_of(deployments)
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


def settle(state: State, name: str, *, now: datetime) -> Rollout | None:
    """End the rollout of a model if a change of its deployments has ended it, and return its final record.

    That is an event of its own, unless the event by which the rollout promoted its version covers it.
    """
    with state.reading() as connection:
        deployments = deployments_in(connection, name)
        if all(settled(rollout, deployments, now=now) is None for rollout in running(connection, name)):
            return None
    with state.writing() as connection:
        deployments = deployments_in(connection, name)
        champion = champion_of(deployments)
        taken = None if champion is None else taken_by(champion.version, changes_of(state, name))
        by = taken.action if taken is not None and taken.action != PROMOTED else None
        for rollout in running(connection, name):
            if (ended := settled(rollout, deployments, now=now, by=by)) is None:
                continue
            update_rollout(connection, ended)
            if ended.status != "promoted" or by is not None:
                add_event(
                    connection,
                    action="rollout.end",
                    subject=f"{name}/{rollout.version}",
                    before={"rollout": rollout.id, "status": rollout.status},
                    after={"rollout": ended.id, "status": ended.status},
                    why=f"rollout {ended.id} {ended.status}: {ended.reason}",
                )
            return ended
    return None


def shared_now(state: State, name: str) -> str:
    """Return the versions whose traffic a rollback would remove, as text; empty without any."""
    with state.reading() as connection:
        rolled = {found.version for found in running(connection, name)}
    return ", ".join(map(str, sorted(rolled | {item.version for item in canaries_of(state.deployments(name))})))


def refuse_running(state: State, name: str) -> None:
    """Refuse to change traffic that a rollout controls.

    Raises:
        RefusedError: naming the rollout.
    """
    with state.reading() as connection:
        for found in running(connection, name):
            raise RefusedError(
                f"version {found.version} of {name} is being rolled out: {found.id}, at {100 * found.weight:g}%",
                hint="raymlops status shows it; raymlops rollback or deploy --abort ends it.",
            )


def _record(
    name: str,
    deployments: Sequence[Deployment],
    version: int,
    *,
    changed: bool,
    digest: str = "",
    warnings: tuple[str, ...] = (),
    rollout_id: str | None = None,
) -> TrafficRecord:
    """Return what a version has; ``digest`` is its bundle's if it is not up."""
    item = next((item for item in deployments if item.version == version), None)
    champion = champion_of(deployments)
    return TrafficRecord(
        name=name,
        version=version,
        digest=item.bundle.digest if item else digest,
        role="warm",
        url=None,
        previous_version=champion.version if champion else None,
        changed=changed,
        warnings=warnings,
        weight=item.weight if item else 0.0,
        shadow=item.shadow if item else 0.0,
        rollout_id=rollout_id,
    )


def _changed(done: Change, name: str, version: int, *, rollout_id: str | None) -> TrafficRecord:
    changed, warnings = done.applied.changed, done.warnings
    return _record(name, done.now.wanted, version, changed=changed, warnings=warnings, rollout_id=rollout_id)
