"""One change of what is live, as a whole: line-up, state, Serve, alias, under one lock.

The desired state is written first, with its audit event, then Serve is brought to it and read back, then the alias
follows. What was read under the lock is what a failed change restores. A kill in between loses nothing: what is live
goes on, and the same verb again, or the controller, completes it. Who becomes what is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from raymlops.errors import ClusterError, RaymlopsError
from raymlops.lifecycle.lineup import champion_of
from raymlops.lifecycle.room import must_leave_first
from raymlops.records import DeploymentRecord
from raymlops.serving.apply import Api, apply

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from raymlops.config.serve import ServeSection
    from raymlops.serving.api import Room
    from raymlops.serving.apply import Applied
    from raymlops.state.store import Deployment, Desired, State

LOCK_MARGIN_S = 60.0
"""How much longer than a version's own time to come up a change waits for the one before it."""


class Cluster(Api, Protocol):
    """What a change asks of a ``ServeApi``."""

    def room(self) -> Room:
        """Return what the cluster has, and what its actors hold."""


Write = Callable[["Connection"], None]


@dataclass(frozen=True)
class LineUp:
    """What a model's deployments are to be. ``subject`` is the version that the change is about, if it stays."""

    wanted: list[Deployment]
    subject: int | None
    concerned: frozenset[int] | None = None
    """Versions that must be seen to have taken the change; by default the subject."""
    spare: frozenset[int] = frozenset()
    """Versions that go where there is no room for the subject beside them."""
    also: Write | None = None
    """Written in the same transaction."""
    undo: Write | None = None
    """Written in the transaction that restores what was before."""
    kept: bool = False
    """Whether it stays desired even where Serve cannot be brought to it now."""


@dataclass(frozen=True)
class Change:
    """What was before, what is now, and what did not follow although it is live."""

    before: list[Deployment]
    now: LineUp
    applied: Applied
    warnings: tuple[str, ...] = ()


Decide = Callable[[Sequence["Deployment"]], LineUp]
Follow = Callable[[int], None]


def change(
    state: State,
    cluster: Cluster,
    name: str,
    *,
    decide: Decide,
    serve: ServeSection,
    action: str,
    why: str,
    actor: str | None = None,
    follow: Follow | None = None,
    hurry: bool = False,
    lock_wait_s: float | None = None,
) -> Change:
    """Change the deployments of one model; where its version does not come up, all is as before.

    ``decide`` is asked for the line-up under the lock. ``follow`` is called with the version once it is live. Its
    failure is put on the record and returned as a warning. ``hurry`` flips a route to a version that is up at once.

    Raises:
        InsufficientResourcesError: the cluster can never hold the version; nothing was changed.
        RefusedError: another change went on for too long; nothing was changed.
        DeployError: the version did not come up.
        RaymlopsError: of ``decide``; nothing was changed.
    """
    wait_s = serve.ready_timeout_s + LOCK_MARGIN_S if lock_wait_s is None else lock_wait_s
    with state.exclusive(f"{action} {name}", wait_s=wait_s):
        before = state.deployments(name)
        now = decide(before)
        early = _leave_early(cluster, before, now)
        if early:
            gone = {item.version for item in early}
            now = replace(now, wanted=[item for item in now.wanted if item.version not in gone])
        written = before != now.wanted or now.also is not None
        if written:
            state.put_deployments({name: now.wanted}, action=action, why=why, actor=actor, also=now.also)
        subject = frozenset() if now.subject is None else frozenset({now.subject})
        concerned = {(name, version) for version in (subject if now.concerned is None else now.concerned)}
        try:
            if early:
                stay = [item for item in before if item not in early]
                _send(cluster, state.desired().without(name).plus(stay), serve=serve)
            applied = _send(
                cluster, state.desired(), serve=serve, concerned=concerned, wait_s=serve.ready_timeout_s, hurry=hurry
            )
        except BaseException as error:
            if written and not now.kept:
                reason = f"{action} failed: {type(error).__name__}: {error}"[:2000]
                undone = f"{action}.undone"
                state.put_deployments({name: before}, action=undone, why=reason, actor=actor, also=now.undo)
                _undo(state, cluster, before, serve=serve)
            raise
        warnings = _followed(state, follow, name, now.subject, action=action)
    return Change(before, now, applied, warnings)


def record_of(change: Change) -> DeploymentRecord:
    """Return a change that left its subject served, for the caller."""
    version = change.now.subject
    new = next(item for item in change.now.wanted if item.version == version)
    old = champion_of(change.before)
    return DeploymentRecord(
        name=new.name,
        version=new.version,
        digest=new.bundle.digest,
        role=new.role,
        url=f"{change.applied.base_url}/models/{new.name}/predict" if new.role == "champion" else None,
        previous_version=old.version if old and old.version != version else None,
        changed=change.applied.changed,
        warnings=change.warnings,
    )


def _leave_early(cluster: Cluster, before: Sequence[Deployment], now: LineUp) -> list[Deployment]:
    """Return the versions that must go before the new one comes up; nothing is asked where it is up already."""
    standing = {item.version: item for item in before}
    new = next((item for item in now.wanted if item.version == now.subject), None)
    if new is None or (new.version in standing and standing[new.version].serve == new.serve):
        return []
    stay = {item.version for item in now.wanted} - now.spare
    leaving = [item for item in before if item.version not in stay and item.role != "champion"]
    try:
        room = cluster.room()
    except ClusterError:
        return []  # not knowing must not refuse what may fit; a dashboard that is down says so when it is sent to
    return leaving if must_leave_first(new, leaving, cluster=room) else []


def _send(
    cluster: Cluster,
    desired: Desired,
    *,
    serve: ServeSection,
    concerned: Collection[tuple[str, int]] = (),
    wait_s: float = 20.0,
    hurry: bool = False,
) -> Applied:
    return apply(
        desired,
        api=cluster,
        wait_s=wait_s,
        concerned=concerned,
        host=serve.host,
        port=serve.port,
        grpc_port=serve.grpc_port,
        hurry=hurry,
    )


def _undo(state: State, cluster: Cluster, before: Sequence[Deployment], *, serve: ServeSection) -> None:
    """Send the state of before, which deletes what did not come up; wait a moment for the champion of before."""
    old = champion_of(before)
    concerned = {(old.name, old.version)} if old is not None else set()
    try:
        _send(cluster, state.desired(), serve=serve, concerned=concerned, wait_s=10)
    except RaymlopsError:
        # Serve does not answer: the desired state is right again, and the next verb brings Serve to it.
        return


def _followed(state: State, follow: Follow | None, name: str, version: int | None, *, action: str) -> tuple[str, ...]:
    """Let the alias follow. The version is live by now, so nothing that fails here may look like a failed change."""
    if follow is None or version is None:
        return ()
    try:
        follow(version)
    except RaymlopsError as error:
        warning = f"version {version} is live, but the alias champion did not follow: {error.message}"
        try:
            state.record(action=f"{action}.alias", subject=f"{name}/{version}", why=warning)
        except RaymlopsError as second:
            return warning, f"that is not in the audit record: {second.message}"
        return (warning,)
    return ()
