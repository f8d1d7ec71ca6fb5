"""Bring a version up beside what is live, before a change gives it traffic: begin, wait, give up.

Owns what must be up before a change, and the handling of a version that does not come up. The version is desired, with
an audit event, before Serve starts it, and no lock is held while it is waited for. So other changes may happen
meanwhile; the waiting verb checks for them. A kill leaves the version warm: the same verb resumes from there, or the
controller removes it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from raymlops.errors import ClusterError, RaymlopsError, RefusedError, TakenError
from raymlops.lifecycle.live.capacity import must_leave_first
from raymlops.lifecycle.live.lineup import BEGUN, beside, champion_of, without
from raymlops.serving.control.apply import Api, apply, await_up, needed_replicas, send
from raymlops.serving.control.details import configs, running_replicas, status_of
from raymlops.serving.control.ownership import divide
from raymlops.serving.control.render import render, settings_of
from raymlops.serving.names import app_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.serve import ServeSection
    from raymlops.lifecycle.live.lineup import LineUp
    from raymlops.serving.control.details import Details
    from raymlops.serving.control.ownership import Division
    from raymlops.serving.control.rest_api import Room
    from raymlops.state.store import Deployment, Desired, State

SHORT_S = 30.0
"""Longest time that a change may hold the lock, once every version is up."""
AGAIN = "Run the same command again."

_log = logging.getLogger(__name__)


class Places(TypedDict):
    """The addresses of Serve, in case it does not run yet."""

    host: str
    port: int
    grpc_port: int | None


class Cluster(Api, Protocol):
    """The part of ``ServeApi`` that a change uses."""

    def room(self) -> Room:
        """Return the cluster's resources, and those that its actors hold."""


@dataclass(frozen=True)
class Coming:
    """A version that must be up before a change continues."""

    item: Deployment
    """As it comes up: with its settings, without the route."""
    was: Deployment | None
    """Its previous deployment, if it was up."""
    champion: int | None
    """The version that held the route when it began."""
    least: int
    """The minimum of running replicas to continue."""
    replicas: int
    """The desired replicas."""
    renewed: bool = False
    """Whether it is up already, and all its replicas get other settings."""
    action: str = ""
    final: bool = False
    """Whether nothing remains to be written once it is up."""
    early: tuple[Deployment, ...] = ()
    """Versions that were removed to make room for it."""
    wrote: bool = False
    changed: bool = False
    """Whether anything was sent to Serve."""
    settings: dict[str, Any] | None = field(default=None, repr=False)

    def check(self, deployments: Sequence[Deployment]) -> None:
        """Refuse to continue if another change has removed or changed what this depends on.

        Raises:
            RefusedError: naming the change.
        """
        name, version = self.item.name, self.item.version
        found = next((item for item in deployments if item.version == version), None)
        if found is None:
            raise RefusedError(f"version {version} of {name} was taken down while it came up", hint=AGAIN)
        if (found.serve, found.bundle) != (self.item.serve, self.item.bundle):
            raise RefusedError(f"version {version} of {name} was given other settings while it came up", hint=AGAIN)
        champion = champion_of(deployments)
        if champion is None:
            if self.champion is not None:
                raise RefusedError(f"{name} lost its route while version {version} came up", hint=AGAIN)
        elif champion.version not in {self.champion, version}:
            raise RefusedError(
                f"version {champion.version} of {name} was made live while version {version} came up", hint=AGAIN
            )

    def wait(self, state: State, cluster: Cluster, *, wait_s: float) -> None:
        """Wait until it is up.

        Raises:
            DeployError: it did not come up in time.
            RefusedError: of ``check``.
        """
        name = self.item.name
        await_up(
            cluster,
            (name, self.item.version),
            least=self.least,
            replicas=self.replicas,
            wait_s=wait_s,
            check=lambda: self.check(state.deployments(name)),
            settings=self.settings,
        )

    def undone(self, deployments: Sequence[Deployment]) -> list[Deployment]:
        """Return the line-up without it; changes that others made to it meanwhile are kept."""
        left = list(deployments)
        found = next((item for item in left if item.version == self.item.version), None)
        if not self.wrote or found is None or found.serve != self.item.serve:
            return left
        if self.was is not None:
            was = self.was.serve
            return [replace(item, serve=was) if item.version == found.version else item for item in left]
        if found.role == "champion" or found.weight or found.shadow:
            return left
        standing = {item.version for item in left}
        left += [item for item in self.early if item.version not in standing]
        return sorted(without(left, {found.version}), key=lambda item: item.version)


def places(serve: ServeSection) -> Places:
    """Return the addresses at which a configuration has Serve listen."""
    return {"host": serve.host, "port": serve.port, "grpc_port": serve.grpc_port}


@dataclass(frozen=True)
class Restored:
    """The restored state, and notes about Serve."""

    desired: Desired
    notes: tuple[str, ...]
    held: TakenError | None
    """Why some models were not restored: another state has models with their names."""


def restored(state: State, cluster: Cluster, *, serve: ServeSection) -> Restored:
    """Bring Serve to the desired state of every model, wait for the champions without the lock, and return that state.

    A model that belongs to another state on this Serve does not prevent the others from being restored.

    Raises:
        OutdatedStateError: Serve runs what a newer copy of the state database desired; nothing was changed.
        DeployError: a champion did not come up; the others are sent all the same.
        RefusedError: another change takes too long, or removed a champion or made another version live meanwhile.
        ClusterError: Serve does not answer.
    """
    with state.exclusive("restore", wait_s=serve.ready_timeout_s):
        desired = state.desired()
        champions = [item for item in desired.deployments if item.role == "champion"]
        division = divide(cluster.get(), desired)
        held = _held(division, {item.name for item in champions})
        champions = [item for item in champions if item.name not in division.holders()]
        keys = {(item.name, item.version) for item in champions}
        applied = apply(desired, api=cluster, wait_s=0, concerned=keys, wait=False, **places(serve))
        for item in champions if applied.changed else ():
            why = "Serve did not run what it should"
            state.record(action="restore", subject=f"{item.name}/{item.version}", why=why)
    deadline = time.monotonic() + serve.ready_timeout_s
    for item in champions:
        least = settings_of(item).min_replicas
        coming = Coming(item, item, item.version, least, least, settings=_rendered(desired, item))
        coming.wait(state, cluster, wait_s=max(0.0, deadline - time.monotonic()))
    with state.exclusive("restore", wait_s=serve.ready_timeout_s):  # nothing is left to be sent; the routes are asked
        applied = apply(state.desired(), api=cluster, wait_s=SHORT_S, concerned=keys, **places(serve))
    return Restored(desired, applied.notes, held)


def _held(division: Division, names: set[str]) -> TakenError | None:
    try:
        division.refuse_held(names)
    except TakenError as error:
        return error
    return None


def coming_up(
    cluster: Cluster, before: Sequence[Deployment], now: LineUp, *, after: Coming | None, hurry: bool
) -> Coming | None:
    """Return the version to bring up before a line-up; None if its subject is up, or was waited for already.

    In a ``hurry`` one running replica is enough, however many the champion has.
    """
    item = now.item()
    if item is None or (after is not None and not after.renewed):
        return None
    was = next((other for other in before if other.version == item.version), None)
    details = cluster.get()
    name = app_name(item.name, item.version)
    stands = was is not None and name in configs(details)
    least, replicas = _asked(details, item)
    if was is None or not stands:
        least = max(1, least)
    elif was.serve == item.serve:
        status, running = status_of(details, name), running_replicas(details, name)
        if status == "RUNNING" and running >= (least if hurry else replicas):
            return None
        if hurry and running and status not in {"DEPLOY_FAILED", "UNHEALTHY"}:
            return None
    champion = champion_of(before)
    return Coming(
        replace(item, role="warm", weight=0.0, shadow=0.0) if was is None else replace(was, serve=item.serve),
        was,
        champion.version if champion is not None else None,
        least,
        max(least, replicas),
        renewed=stands and was is not None and was.serve != item.serve,
    )


def begin(
    state: State,
    cluster: Cluster,
    coming: Coming,
    before: Sequence[Deployment],
    now: LineUp,
    *,
    serve: ServeSection,
    action: str,
    why: str,
    actor: str | None,
) -> Coming:
    """Write that a version comes up and send it to Serve, under the lock; if Serve rejects it, restore the state.

    Raises:
        InsufficientResourcesError: the cluster can never hold it; nothing was changed.
        DeployError, ClusterError: of ``send``.
    """
    name = coming.item.name
    early = () if coming.was is not None and not coming.renewed else _leave_early(cluster, before, now)
    gone = {item.version for item in early}
    stay = without(before, gone)
    first = beside(stay, coming.item)
    final = first == without(now.wanted, gone)
    wrote = first != list(before) or (final and now.also is not None)
    begun = action if final else f"{action}{BEGUN}"
    coming = replace(coming, action=begun, final=final and wrote, wrote=wrote, early=tuple(early))
    if wrote:
        said = why if final else f"{why}: first it comes up, without the route"
        also = now.also if final else None
        state.put_deployments({name: first}, action=begun, why=said, actor=actor, also=also)
    desired = state.desired()
    try:
        if early:  # gone before the version comes up: it has no room beside them
            rest = desired.without(name).plus(stay)
            apply(rest, api=cluster, wait_s=0, concerned=(), wait=False, **places(serve))
        key = (name, coming.item.version)
        changed = send(desired, api=cluster, coming=key, replicas=coming.replicas, **places(serve))
    except BaseException as error:
        _take_back(state, cluster, coming, error, serve=serve, actor=actor)
        raise
    settings = _rendered(desired, coming.item) if coming.renewed else None
    return replace(coming, changed=changed or bool(early), settings=settings)


def give_up(
    state: State,
    cluster: Cluster,
    coming: Coming,
    error: BaseException,
    *,
    serve: ServeSection,
    actor: str | None,
    wait_s: float,
) -> None:
    """Remove a version that did not come up; a failure to do so is only logged, since ``error`` is raised."""
    try:
        with state.exclusive(f"{coming.action} {coming.item.name}, undone", wait_s=wait_s):
            _take_back(state, cluster, coming, error, serve=serve, actor=actor)
    except RaymlopsError as second:
        _log.warning("version %d of %s is left warm: %s", coming.item.version, coming.item.name, second)


def _take_back(
    state: State, cluster: Cluster, coming: Coming, error: BaseException, *, serve: ServeSection, actor: str | None
) -> None:
    name = coming.item.name
    now = state.deployments(name)
    left = coming.undone(now)
    if left != now:
        reason = f"{coming.action} failed: {type(error).__name__}: {error}"[:2000]
        state.put_deployments({name: left}, action=f"{coming.action}.undone", why=reason, actor=actor)
    try:
        apply(state.desired(), api=cluster, wait_s=0, concerned=(), wait=False, **places(serve))
    except RaymlopsError as second:
        # Serve does not answer: the desired state is restored, and the next verb brings Serve to it.
        _log.warning("version %d of %s could not be removed from Serve: %s", coming.item.version, name, second)


def _asked(details: Details, item: Deployment) -> tuple[int, int]:
    """Return the minimum and the desired number of a version's replicas for its role."""
    settings = settings_of(item)
    least = settings.min_replicas
    if item.role == "champion":
        replicas = needed_replicas(details, (item.name, item.version), least=least, most=settings.max_replicas)
        return min(max(1, least), replicas), replicas
    least = max(1, least) if item.weight or item.shadow else least
    return least, least


def _leave_early(cluster: Cluster, before: Sequence[Deployment], now: LineUp) -> list[Deployment]:
    """Return the versions that must be removed before the subject comes up."""
    new = now.item()
    assert new is not None
    stay = {item.version for item in now.wanted} - now.spare
    leaving = [item for item in before if item.version not in stay and item.role != "champion"]
    try:
        room = cluster.room()
    except ClusterError:
        return []  # what may fit must not be rejected; a dashboard that is down is reported by the next request
    return leaving if must_leave_first(new, leaving, cluster=room) else []


def _rendered(desired: Desired, item: Deployment) -> dict[str, Any]:
    applications = render(desired, host="127.0.0.1", port=0)["applications"]
    found: dict[str, Any] = next(one for one in applications if one["name"] == app_name(item.name, item.version))
    return found
