"""The plan of a change: Serve's present and wanted applications, and the config that is sent.

Owns the reading before a change and the sending. Serve deletes declared applications that a config lacks. So the
applications of other states, and foreign ones, are read again just before each config and sent unchanged.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from raymlops.cluster.ports import free_port
from raymlops.errors import PortTakenError, UsageError
from raymlops.serving.control.address import Listening, is_local, listening, open_to_others
from raymlops.serving.control.ownership import divide, stamped
from raymlops.serving.control.render import render, settings_of
from raymlops.serving.names import INDEX_APP

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from raymlops.serving.control.ownership import Division
    from raymlops.state.store import Desired


class Api(Protocol):
    """The part of ``ServeApi`` by which Serve is read and written."""

    @property
    def dashboard_url(self) -> str:
        """Return the URL of the Ray dashboard."""

    def get(self) -> dict[str, Any]:
        """Return Serve's details."""

    def put(self, config: dict[str, Any]) -> None:
        """Send a config."""


@dataclass(frozen=True)
class Plan:
    """Serve's present and wanted applications."""

    details: dict[str, Any]
    local: bool
    listens: Listening
    desired: Desired
    """Without the models that another state has on this Serve."""
    target: dict[str, Any]
    wanted: dict[str, dict[str, Any]]
    """Our applications in the desired state."""
    division: Division
    """The live applications by owner."""
    notes: tuple[str, ...]
    """Notes on this Serve, for the user."""

    @property
    def ours(self) -> dict[str, dict[str, Any]]:
        """Return our live applications."""
        return self.division.ours

    def config(self, details: dict[str, Any], applications: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Return the config that replaces our applications, by Serve's details of just now.

        New ones start with at least one replica.

        One with ``min_replicas: 0`` would otherwise not prove that it answers. Serve 2.60 resets the target to
        ``initial_replicas`` at every change of a deployment's config, so that it is sent only once.

        Raises:
            TakenError: another state took one of these names meanwhile.
        """
        division = divide(details, self.desired)
        division.refuse_held({config["args"].get("name", "") for config in applications.values()})
        if INDEX_APP in division.others:  # another state was first to have one
            applications = {name: config for name, config in applications.items() if name != INDEX_APP}
        bodies = [
            stamped(
                config if name in division.ours else _started(config),
                division.ours.get(name),
                self.desired.owner,
            )
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
) -> Plan:
    """Read Serve's present state, and plan the change to the desired one.

    Models that another state has on this Serve are left out, so that they block no change.

    Raises:
        OutdatedStateError: Serve runs the desired state of a newer copy of the state database.
        ClusterError: the dashboard does not answer.
        PortTakenError: Serve does not run yet and another process listens on its port.
        UsageError: the desired state cannot be rendered.
    """
    local = is_local(api.dashboard_url)
    details = api.get()
    listens = listening(details, local=local)
    if listens is None:
        if desired.deployments and local:
            port = port or free_port()
            check_port(host, port)
        listens = Listening(host, port)
    division = divide(details, desired)
    held = division.holders().keys() & {item.name for item in desired.deployments}
    for name in held:
        desired = desired.without(name)
    target = render(
        desired,
        host=listens.host,
        port=listens.port,
        foreign=division.kept,
        grpc_port=grpc_port,
        reach=listens.reach,
    )
    kept = {config["name"] for config in division.kept}
    wanted = {config["name"]: config for config in target["applications"] if config["name"] not in kept}
    notes = _notes(desired, division, listens, held=held)
    return Plan(details, local, listens, desired, target, wanted, division, notes)


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


def _notes(desired: Desired, division: Division, listens: Listening, *, held: Collection[str]) -> tuple[str, ...]:
    notes = list(division.seen())
    if held:
        notes.append(f"not brought up, since another state has a model of that name here: {', '.join(sorted(held))}")
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


def _started(config: dict[str, Any]) -> dict[str, Any]:
    (options,) = config["deployments"]
    bounds = options.get("autoscaling_config", {"min_replicas": 1})
    if bounds["min_replicas"] > 0:
        return config
    return {**config, "deployments": [{**options, "autoscaling_config": {**bounds, "initial_replicas": 1}}]}
