"""Bringing a version up beside what is live, before a change gives it anything: begun, waited for, given up.

Owns what must be up before a change, and what becomes of a version that does not come up. It is desired from the
moment that it is begun, with an audit event, and holds no lock while it is waited for. So others may change what is
live meanwhile; whoever waits finds that out. A kill leaves it warm: the same verb goes on from there, or the controller
takes it down.
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
"""How long a change of what is up may take under the lock; nothing has to come up any more."""
AGAIN = "Run the same command again."

_log = logging.getLogger(__name__)


class Places(TypedDict):
    """Where Serve is to listen, should it not run yet."""

    host: str
    port: int
    grpc_port: int | None


class Cluster(Api, Protocol):
    """What a change asks of a ``ServeApi``."""

    def room(self) -> Room:
        """Return what the cluster has, and what its actors hold."""


@dataclass(frozen=True)
class Coming:
    """A version that is to be up before a change goes on."""

    item: Deployment
    """As it comes up: with its settings, without a route."""
    was: Deployment | None
    """As it stood before."""
    champion: int | None
    """Who held the route when it began."""
    least: int
    """Replicas without which it cannot go on."""
    replicas: int
    """Replicas that it is to have."""
    renewed: bool = False
    """Whether it stands already, and all its replicas are to have other settings."""
    action: str = ""
    final: bool = False
    """Whether nothing is left to write once it is up."""
    early: tuple[Deployment, ...] = ()
    """Versions that made room for it."""
    wrote: bool = False
    changed: bool = False
    """Whether Serve was sent anything."""
    settings: dict[str, Any] | None = field(default=None, repr=False)

    def check(self, deployments: Sequence[Deployment]) -> None:
        """Refuse to go on where somebody changed meanwhile what this rests on.

        Raises:
            RefusedError: saying what.
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
        """Return the line-up in which it has not begun; what others changed of it since stays."""
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
    """Return where a configuration has Serve listen."""
    return {"host": serve.host, "port": serve.port, "grpc_port": serve.grpc_port}


@dataclass(frozen=True)
class Restored:
    """What is back, and what was seen on the way."""

    desired: Desired
    notes: tuple[str, ...]
    held: TakenError | None
    """Why some models are not back: another state has models of their names."""


def restored(state: State, cluster: Cluster, *, serve: ServeSection) -> Restored:
    """Bring Serve to the desired state of every model, wait for the champions without the lock, and return that state.

    A model that another state has on this Serve keeps no other from coming back.

    Raises:
        OutdatedStateError: Serve runs what a newer copy of the state database desired; nothing was changed.
        DeployError: a champion did not come up; the others are sent all the same.
        RefusedError: another change goes on for too long, or took a champion away or made another one live meanwhile.
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
    """Return what must be brought up before a line-up; None where its subject is up, or was waited for already.

    In a ``hurry`` whoever answers is up, however many replicas the holder of the route has.
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
    """Write that a version comes up and tell Serve, under the lock; where Serve does not take it, all is as before.

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
    """Take away a version that did not come up; whatever is in the way of that is no news beside ``error``."""
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
        # Serve does not answer: the desired state is right again, and the next verb brings Serve to it.
        _log.warning("Serve was not told that version %d of %s is not to be: %s", coming.item.version, name, second)


def _asked(details: Details, item: Deployment) -> tuple[int, int]:
    """Return the replicas without which a version cannot do what it is to do, and those that it is to have for it."""
    settings = settings_of(item)
    least = settings.min_replicas
    if item.role == "champion":
        replicas = needed_replicas(details, (item.name, item.version), least=least, most=settings.max_replicas)
        return min(max(1, least), replicas), replicas
    least = max(1, least) if item.weight or item.shadow else least
    return least, least


def _leave_early(cluster: Cluster, before: Sequence[Deployment], now: LineUp) -> list[Deployment]:
    """Return the versions that must go before the subject comes up."""
    new = now.item()
    assert new is not None
    stay = {item.version for item in now.wanted} - now.spare
    leaving = [item for item in before if item.version not in stay and item.role != "champion"]
    try:
        room = cluster.room()
    except ClusterError:
        return []  # not knowing must not refuse what may fit; a dashboard that is down says so when it is sent to
    return leaving if must_leave_first(new, leaving, cluster=room) else []


def _rendered(desired: Desired, item: Deployment) -> dict[str, Any]:
    applications = render(desired, host="127.0.0.1", port=0)["applications"]
    found: dict[str, Any] = next(one for one in applications if one["name"] == app_name(item.name, item.version))
    return found
