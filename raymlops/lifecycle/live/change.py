"""One change of what is live, as a whole: line-up, state, Serve, alias.

A version that is not up is first brought up beside what is live (see ``bring_up``), which may take minutes and holds no
lock. The rest is short, under the lock of every change: the line-up is decided again, the desired state is written with
its audit event, then Serve is brought to it and read back. A failed change restores what was read under the lock. A
kill in between loses nothing: what is live stays live, and the same verb, or the controller, completes the change. The
caller decides the line-up.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raymlops.errors import ClusterError, RaymlopsError, TrackingError
from raymlops.lifecycle.live.bring_up import SHORT_S, Cluster, begin, coming_up, give_up, places
from raymlops.lifecycle.live.lineup import Decide, Follow, LineUp, champion_of
from raymlops.records import DeploymentRecord
from raymlops.serving.control.apply import apply
from raymlops.serving.control.ownership import divide
from raymlops.state.aliases import add_pending_alias, complete_alias
from raymlops.state.audit import add_event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from raymlops.config.serve import ServeSection
    from raymlops.lifecycle.live.bring_up import Coming
    from raymlops.serving.control.apply import Applied
    from raymlops.state.store import Deployment, State

__all__ = ["Change", "Cluster", "Decide", "Follow", "LineUp", "change", "record_of"]

LOCK_MARGIN_S = 60.0
"""How much longer than a version's own time to come up a change waits for the previous one."""
ALIAS_S = 10.0
"""Longest wait for MLflow. The version is live by then, and the controller sets the alias later."""


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
    on_live: Follow | None = None,
    alias_wait_s: float = ALIAS_S,
) -> Change:
    """Change the deployments of one model; if its version does not come up, the previous state is restored.

    ``decide`` returns the line-up, under the lock; it is called again after the version has come up. ``on_live`` and
    then ``follow`` are called with the version once it is live, without the lock. If ``follow`` fails, or takes longer
    than ``alias_wait_s``, that is recorded and returned as a warning. ``hurry`` gives the route to a version that is up
    at once.

    Raises:
        InsufficientResourcesError: the cluster can never hold the version; nothing was changed.
        TakenError, OutdatedStateError: the model on Serve is another state's, or a newer copy's of this one; nothing
            was changed.
        RefusedError: another change took too long, or removed the version or changed the champion meanwhile.
        DeployError: the version did not come up.
        RaymlopsError: of ``decide``; nothing was changed.
    """
    wait_s = serve.ready_timeout_s + LOCK_MARGIN_S if lock_wait_s is None else lock_wait_s
    coming: list[Coming] = []
    try:
        while True:
            with state.exclusive(f"{action} {name}", wait_s=wait_s):
                before = state.deployments(name)
                if coming:
                    coming[-1].check(before)
                now = decide(before)
                _refuse_foreign(state, cluster, name, before, now)
                said = now.why or why
                following = coming_up(cluster, before, now, after=coming[-1] if coming else None, hurry=hurry)
                if following is None:
                    if any(one.final for one in coming):
                        now = replace(now, also=None)  # it was written when the version began to come up
                    done = _finish(
                        state,
                        cluster,
                        name,
                        before,
                        now,
                        serve=serve,
                        action=action,
                        why=said,
                        actor=actor,
                        hurry=hurry or bool(coming),
                        owed=follow is not None,
                    )
                    break
                coming.append(
                    begin(state, cluster, following, before, now, serve=serve, action=action, why=said, actor=actor)
                )
            coming[-1].wait(state, cluster, wait_s=serve.ready_timeout_s)
    except BaseException as error:
        for one in reversed(coming):
            give_up(state, cluster, one, error, serve=serve, actor=actor, wait_s=wait_s)
        raise
    if any(one.changed for one in coming):
        done = replace(done, applied=replace(done.applied, changed=True))
    if on_live is not None and done.now.subject is not None:
        on_live(done.now.subject)
    later = None if follow is None else within(alias_wait_s, follow)
    followed = _followed(state, later, name, done.now.subject, action=action)
    return replace(done, warnings=(*done.applied.notes, *followed))


def record_of(change: Change) -> DeploymentRecord:
    """Return the record of a change whose subject is served."""
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


def _refuse_foreign(state: State, cluster: Cluster, name: str, before: Sequence[Deployment], now: LineUp) -> None:
    """Refuse to change a model of another state, before anything is written; without an answer of Serve, do nothing.

    A model that another state took over can still be removed from this one.
    """
    with suppress(ClusterError):
        division = divide(cluster.get(), state.desired())
        if now.wanted or not before:
            division.refuse_held({name})


def _finish(
    state: State,
    cluster: Cluster,
    name: str,
    before: list[Deployment],
    now: LineUp,
    *,
    serve: ServeSection,
    action: str,
    why: str,
    actor: str | None,
    hurry: bool,
    owed: bool,
) -> Change:
    """Write a line-up of which every version is up, and bring Serve to it."""
    written = before != now.wanted or now.also is not None
    champion = champion_of(now.wanted)
    owes = owed and champion is not None and champion.version == now.subject

    def also(connection: Connection) -> None:
        if now.also is not None:
            now.also(connection)
        if owes and now.subject is not None:
            add_pending_alias(connection, name, now.subject)

    if written:
        state.put_deployments({name: now.wanted}, action=action, why=why, actor=actor, also=also)
    subject = frozenset() if now.subject is None else frozenset({now.subject})
    concerned = {(name, version) for version in (subject if now.concerned is None else now.concerned)}
    wait_s = min(serve.ready_timeout_s, SHORT_S)
    try:
        applied = apply(state.desired(), api=cluster, wait_s=wait_s, concerned=concerned, hurry=hurry, **places(serve))
    except BaseException as error:
        if written and not now.kept:
            reason = f"{action} failed: {type(error).__name__}: {error}"[:2000]
            state.put_deployments({name: before}, action=f"{action}.undone", why=reason, actor=actor, also=now.undo)
            _undo(state, cluster, before, serve=serve)
        raise
    return Change(before, now, applied)


def _undo(state: State, cluster: Cluster, before: Sequence[Deployment], *, serve: ServeSection) -> None:
    """Send the previous state, and wait briefly for its champion."""
    old = champion_of(before)
    concerned = {(old.name, old.version)} if old is not None else set()
    try:
        apply(state.desired(), api=cluster, wait_s=10, concerned=concerned, **places(serve))
    except RaymlopsError:
        # Serve does not answer: the desired state is right again, and the next verb brings Serve to it.
        return


def within(seconds: float, follow: Follow) -> Follow:
    """Return ``follow`` with a time limit, so that a server that hangs blocks nothing."""

    def bounded(version: int) -> None:
        raised: list[BaseException] = []

        def run() -> None:
            try:
                follow(version)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=run, name="raymlops-alias", daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            raise TrackingError(f"MLflow did not answer within {seconds:g} s; the controller sets it later")
        if raised:
            raise raised[0]

    return bounded


def _followed(state: State, follow: Follow | None, name: str, version: int | None, *, action: str) -> tuple[str, ...]:
    """Set the alias. The version is live already, so that a failure here must not look like a failed change.

    The state has recorded it as pending, so that the controller sets it whatever happens here.
    """
    if follow is None or version is None:
        return ()
    try:
        follow(version)
    except RaymlopsError as error:
        warning = f"version {version} is live, but the alias champion was not set: {error.message}"
        try:
            with state.writing() as connection:
                add_pending_alias(connection, name, version)
                add_event(connection, action=f"{action}.alias", subject=f"{name}/{version}", why=warning)
        except RaymlopsError as second:
            return warning, f"that is not in the audit record: {second.message}"
        return (warning,)
    try:
        complete_alias(state, name, version)
    except RaymlopsError as error:
        return (f"version {version} is live, and its alias is set once more later: {error.message}",)
    return ()


@dataclass(frozen=True)
class Change:
    """The previous and the new line-up, and what is still pending although the version is live."""

    before: list[Deployment]
    now: LineUp
    applied: Applied
    warnings: tuple[str, ...] = ()
