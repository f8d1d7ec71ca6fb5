"""The plan of a change: Serve's present and wanted applications, and the config that is sent.

Owns the reading before a change and the sending. Serve deletes declared applications that a config lacks. So the
applications of other states, and foreign ones, are read again just before each config and sent unchanged.
"""

from __future__ import annotations

import socket
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from raymlops.cluster.ports import free_port
from raymlops.errors import PortTakenError, StorageError, UsageError
from raymlops.serving.control.address import Listening, listening, open_to_others, tls_at_start
from raymlops.serving.control.ownership import divide, model_of, stamped
from raymlops.serving.control.render import render, settings_of
from raymlops.serving.names import INDEX_APP, app_name, route_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from raymlops.errors import RaymlopsError
    from raymlops.serving.control.ownership import Division
    from raymlops.state.store import Deployment, Desired


ALONE_TRIES = 500 if sys.platform == "linux" else 0
"""One each 10 ms, while another state sends its config."""
STALE_S = 1.0
"""Age from which what Serve runs is read again before a config is sent."""


class Api(Protocol):
    """The part of ``ServeApi`` by which Serve is read and written."""

    @property
    def dashboard_url(self) -> str:
        """Return the URL of the Ray dashboard."""

    @property
    def is_local(self) -> bool:
        """Return whether the cluster runs on this machine."""

    def get(self) -> dict[str, Any]:
        """Return Serve's details."""

    def proxy_to_start(self) -> str | None:
        """Return the proxy that Serve starts on this cluster, None if that is not known."""

    def put(self, config: dict[str, Any]) -> None:
        """Send a config."""


@dataclass
class Plan:
    """Serve's present and wanted applications."""

    details: dict[str, Any]
    local: bool
    listens: Listening
    desired: Desired
    """With ``blocked`` models as they are on Serve."""
    target: dict[str, Any]
    wanted: dict[str, dict[str, Any]]
    """Our applications in the desired state."""
    division: Division
    """The live applications by owner."""
    notes: tuple[str, ...]
    """Notes on this Serve, for the user."""
    sent: set[str]
    """Names of our applications that Serve knows."""
    blocked: dict[str, RaymlopsError]
    """Models that stand still, and why: nothing starts or ends, and no route moves.

    Others have their names or routes, or another release stored settings that cannot be read.
    """

    @property
    def ours(self) -> dict[str, dict[str, Any]]:
        """Return our live applications."""
        return self.division.ours

    @property
    def upgrade(self) -> str | None:
        """Return that callers are answered by another cluster, which gets no change, while that is so."""
        return self.details.get("upgrade")

    def refuse_blocked(self, names: Collection[str]) -> None:
        """Refuse to change models that stand still.

        Raises:
            TakenError: naming the first of them, and who has its name or route.
            StorageError: its settings cannot be read.
        """
        for name in sorted(self.blocked.keys() & set(names)):
            raise self.blocked[name]

    def put(
        self, api: Api, applications: Mapping[str, dict[str, Any]], *, current: Callable[[], bool] = lambda: True
    ) -> bool:
        """Replace our applications, unless the plan is no longer ``current``; return whether they were sent.

        New ones start with at least one replica: one with ``min_replicas: 0`` would otherwise not prove that it
        answers. Serve 2.60 resets the target to ``initial_replicas`` at every change of a deployment's config, so that
        it is sent only once.

        Raises:
            TakenError: somebody else took one of these names or routes meanwhile; nothing was sent.
        """
        with _alone(self.details):
            for last in (False, False, True):
                details, read = api.get(), time.monotonic()
                config = self._config(divide(details, self.desired), applications)
                if not current():
                    return False
                if last or time.monotonic() - read < STALE_S:  # else this process was stopped: others may have sent
                    break
            api.put(config)
            self.sent = {application["name"] for application in config["applications"]}
        return True

    def _config(self, division: Division, applications: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        if not division.index_fits:  # somebody else was first to have one
            applications = {name: config for name, config in applications.items() if name != INDEX_APP}
        claims = [(model_of(config) or "", name, config["route_prefix"]) for name, config in applications.items()]
        for error in division.taken(claims).values():
            raise error
        bodies = [
            stamped(config if name in self.sent else _started(config), division.ours.get(name), self.desired.owner)
            for name, config in applications.items()
        ]
        return {**self.target, "applications": [*bodies, *division.kept]}


def plan_of(
    desired: Desired,
    api: Api,
    *,
    host: str,
    port: int,
    grpc_port: int | None,
    everywhere: bool = False,
    tls: tuple[str, str] | None = None,
    proxy: str | None = None,
    starts: bool = False,
) -> Plan:
    """Read Serve's present state, and plan the change to the desired one.

    Where Serve listens counts if it does not run yet, as do ``everywhere``, ``tls`` and the ``proxy`` that a
    configuration names. ``starts`` says that a version is about to be desired, also where none is yet.

    Raises:
        OutdatedStateError: Serve runs the desired state of a newer copy of the state database.
        ClusterError: the dashboard does not answer; or Serve does not run yet, and would start without ``tls``.
        PortTakenError: Serve does not run yet and another process listens on its port.
    """
    local = api.is_local
    details = api.get()
    listens = listening(details, api)
    if listens is None:
        if desired.deployments and local:
            port = port or free_port()
            check_port(host, port)
        if tls is not None and (desired.deployments or starts):
            tls = tls_at_start(tls, api.proxy_to_start() or proxy)
        listens = Listening(host, port)
    elif not details["http_options"].get("ssl_certfile"):
        tls = None
    division = divide(details, desired)
    unread = unreadable(desired.deployments)
    readable = [item for item in desired.deployments if item.name not in unread]
    blocked = {**division.taken(places_of(readable)), **unread}
    desired = replace(desired, deployments=tuple(_standing(readable, division.ours, blocked)))
    target = render(
        desired,
        host=listens.host,
        port=listens.port,
        grpc_port=grpc_port,
        reach=listens.reach,
        index=division.index_fits,
        everywhere=everywhere,
        tls=tls,
    )
    wanted = {config["name"]: config for config in target["applications"]}
    notes = (*_notes(desired, division, listens, blocked=blocked), *filter(None, (details.get("upgrade"),)))
    return Plan(details, local, listens, desired, target, wanted, division, notes, set(division.ours), blocked)


def places_of(deployments: Iterable[Deployment]) -> list[tuple[str, str, str | None]]:
    """Return the name on Serve that each version needs, and the route of its model."""
    return [(item.name, app_name(item.name, item.version), route_of(item.name)) for item in deployments]


def unreadable(deployments: Iterable[Deployment]) -> dict[str, RaymlopsError]:
    """Return the models of which a version has settings that this release cannot read, and why."""
    found: dict[str, RaymlopsError] = {}
    for item in deployments:
        try:
            settings_of(item)
        except StorageError as error:
            found[item.name] = error
    return found


def check_port(host: str, port: int) -> None:
    """Check that Serve can listen on a port.

    Raises:
        PortTakenError: another process listens there.
        UsageError: this machine does not have the address.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, PermissionError) or "assign" in str(error):
                raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}") from error
            raise PortTakenError(
                f"port {port} on {host} is taken by another process",
                hint="Set serve.port to another one, or to 0 for any free one.",
            ) from error


def _standing(
    deployments: Iterable[Deployment], ours: Mapping[str, Mapping[str, Any]], blocked: Collection[str]
) -> Iterator[Deployment]:
    """Yield the deployments, of blocked models those that run, with the route where it is."""
    for item in deployments:
        if item.name not in blocked:
            yield item
        elif (live := ours.get(app_name(item.name, item.version))) is not None:
            holds = bool(live.get("route_prefix"))
            yield replace(item, role="champion", weight=0.0, shadow=0.0) if holds else replace(item, role="warm")


def _notes(
    desired: Desired, division: Division, listens: Listening, *, blocked: Mapping[str, RaymlopsError]
) -> tuple[str, ...]:
    notes = [*division.seen(), *(f"not brought up: {error.message}" for error in blocked.values())]
    champions = [item for item in desired.deployments if item.role == "champion"]
    if champions and INDEX_APP in division.others:
        notes.append(
            "the list of models at /, host-level /v2 and gRPC are the other state's: models of this one are reached "
            "at /models/NAME"
        )
    open_models = sorted(item.name for item in champions if not settings_of(item).key_required_at(listens.reach))
    if note := open_to_others(open_models, listens):
        notes.append(note)
    return tuple(notes)


@contextmanager
def _alone(details: Mapping[str, Any]) -> Iterator[None]:
    """Keep other states on this Serve from sending meanwhile, as far as their processes are on this machine.

    Serve's API (2.60) cannot compare and swap. A name among Linux' abstract sockets is had by one process at a time, of
    any user, and is free when that ends. Whoever keeps it too long is not waited for.
    """
    with socket.socket(socket.AF_UNIX) as lock:
        serve = (details.get("controller_info") or {}).get("actor_id")
        for _ in range(ALONE_TRIES if serve else 0):
            try:
                lock.bind(f"\0raymlops sends to {serve}")
            except OSError:
                time.sleep(0.01)
            else:
                break
        yield


def _started(config: dict[str, Any]) -> dict[str, Any]:
    (options,) = config["deployments"]
    bounds = options.get("autoscaling_config", {"min_replicas": 1})
    if bounds["min_replicas"] > 0:
        return config
    return {**config, "deployments": [{**options, "autoscaling_config": {**bounds, "initial_replicas": 1}}]}
