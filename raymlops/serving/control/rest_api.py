"""Client of Ray's dashboard: Serve's details and config, and the resources of the cluster.

Owns the HTTP calls, their token and their errors. Knows nothing of deployments. The token is read at each call and
appears in no message.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from raymlops.cluster.autoscaler import may_grow
from raymlops.cluster.endpoint.haproxy import LABEL
from raymlops.cluster.processes import session_runs_here
from raymlops.cluster.resource_usage import group
from raymlops.config.serve import is_loopback
from raymlops.errors import ClusterError, DeployError
from raymlops.serving.control.details import last_lines

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.cluster.placement import Holder

_PATH = "/api/serve/applications/"
_CLUSTER = "/cluster_id"
_STATUS = "/api/cluster_status"
_VERSION = "/api/version"


@dataclass(frozen=True)
class Room:
    """The nodes and actors of a cluster: rows of Ray's state API."""

    nodes: list[dict[str, Any]]
    """``node_id``, ``node_ip`` and ``resources_total``."""
    actors: list[dict[str, Any]]
    """``name``, ``node_id`` and ``required_resources``."""
    grows: bool | None
    """Whether an autoscaler may add nodes; None if that is unknown."""


class ServeApi:
    """The Serve API of one Ray dashboard.

    ``token`` is for clusters with token authentication; by default it is what Ray itself would use (``ray_token``).
    """

    def __init__(
        self,
        dashboard_url: str,
        token: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self._timeout_s = timeout_s
        self.dashboard_url = dashboard_url.rstrip("/")
        self._token = token
        self._transport = transport
        self._deaths: dict[str, str] = {}
        self._is_local: bool | None = None
        self._head: dict[str, Any] | None = None

    def get(self) -> dict[str, Any]:
        """Return Serve's details: ``http_options``, ``proxies``, ``applications`` by name with status and config.

        Raises:
            ClusterError: the dashboard does not answer, or refuses us.
        """
        details: dict[str, Any] = self._call("GET", _PATH).json()
        for application in details.get("applications", {}).values():
            for deployment in application.get("deployments", {}).values():
                # All that Serve (2.60) says of a replica that died while it was up.
                if "health check failed" in deployment.get("message", ""):
                    dead = [replica.get("actor_id") for replica in deployment.get("recent_dead_replicas", ())]
                    with suppress(ClusterError):
                        deployment["message"] += "".join(f"\n{self._death(actor)}" for actor in dead[-1:] if actor)
        return details

    @property
    def is_local(self) -> bool:
        """Return whether the cluster runs on this machine, so that its proxies and ports can be looked at.

        A dashboard on loopback may be forwarded from elsewhere: then no process here is of its session.

        Raises:
            ClusterError: the dashboard does not answer, or refuses us.
        """
        if self._is_local is None:
            loopback = is_loopback(urlsplit(self.dashboard_url).hostname or "")
            self._is_local = loopback and session_runs_here(self._call("GET", _VERSION).json().get("session_name"))
        return self._is_local

    def actor_classes(self) -> dict[str, str]:
        """Return the class of each actor that is alive, by its id.

        Raises:
            ClusterError: the dashboard does not answer, or refuses us.
        """
        return {row["actor_id"]: row["class_name"] for row in self._list("actors")}

    def proxy_to_start(self) -> str | None:
        """Return the proxy that Serve starts on this cluster, as its head's label says; None without the label.

        Raises:
            ClusterError: the dashboard does not answer, or refuses us.
        """
        if self._head is None:  # its labels are those that it was started with
            self._head = next((row for row in self._list("nodes") if row.get("is_head_node")), None)
        return ((self._head or {}).get("labels") or {}).get(LABEL)

    def put(self, config: dict[str, Any]) -> None:
        """Replace Serve's config. Declared applications that it lacks are deleted.

        Raises:
            ClusterError: the dashboard does not answer, or refuses us.
            DeployError: Serve refuses the config; nothing was changed.
        """
        self._call("PUT", _PATH, config)

    def cluster_id(self) -> str:
        """Return Ray's id of the cluster, which a restart of its head changes unless its state is kept (GCS).

        Raises:
            ClusterError: the dashboard does not answer, or refuses us.
        """
        found: str = self._call("GET", _CLUSTER).json()["data"]["clusterId"]
        return found

    def room(self) -> Room:
        """Return the cluster's nodes and actors that are alive, with the resources of each.

        Raises:
            ClusterError: the dashboard does not answer, or refuses us.
        """
        nodes, actors = self._list("nodes"), self._list("actors")
        return Room(nodes, actors, grows=_grows(self._call("GET", _STATUS).json()))

    def holders(self) -> list[Holder]:
        """Return who holds CPUs or GPUs, the largest share first.

        Raises:
            ClusterError: the dashboard does not answer, or refuses us.
        """
        groups = [
            {**row, "bundles": {index: bundle["unit_resources"] for index, bundle in enumerate(row["bundles"])}}
            for row in self._list("placement_groups", "CREATED")
        ]
        jobs = {row["job_id"]: (row["entrypoint"] or "")[:60] for row in self._list("jobs", None) if row["job_id"]}
        return group(actors=self._list("actors"), tasks=self._list("tasks", "RUNNING"), groups=groups, jobs=jobs)

    def _death(self, actor_id: str) -> str:
        """Return how an actor died, as Ray has it."""
        if actor_id not in self._deaths:
            (row,) = self._list("actors", actor_id, by="actor_id") or ({},)
            context: dict[str, Any] = next(iter((row.get("death_cause") or {}).values()), {})
            self._deaths[actor_id] = context.get("error_message") or "Ray does not say how it died"
        return self._deaths[actor_id]

    def _list(self, kind: str, value: str | None = "ALIVE", *, by: str = "state") -> list[dict[str, Any]]:
        query = f"&filter_keys={by}&filter_predicates=%3D&filter_values={value}" if value else ""
        answer = self._call("GET", f"/api/v0/{kind}?detail=true&limit=10000{query}").json()
        if not answer.get("result"):
            raise ClusterError(f"the Ray dashboard at {self.dashboard_url} cannot list {kind}: {answer.get('msg')}")
        rows: list[dict[str, Any]] = answer["data"]["result"]["result"]
        return rows

    def _call(self, method: str, path: str, config: dict[str, Any] | None = None) -> httpx.Response:
        # The user agent must not look like a browser's: Ray 2.60 shows those no runtime_env values, and a
        # foreign application sent back with placeholders would lose its own.
        headers = {"user-agent": "raymlops"}
        token = self._token or ray_token()
        if token:
            headers["authorization"] = f"Bearer {token}"
        try:
            with httpx.Client(transport=self._transport, timeout=self._timeout_s, trust_env=False) as client:
                response = client.request(method, self.dashboard_url + path, json=config, headers=headers)
        except httpx.HTTPError as error:
            raise ClusterError(
                f"the Ray dashboard at {self.dashboard_url} does not answer: {type(error).__name__}",
                hint="`raymlops status` shows whether the cluster runs; the dashboard must be on.",
            ) from error
        if response.status_code in {401, 403}:
            raise ClusterError(
                f"the Ray dashboard at {self.dashboard_url} refuses us ({response.status_code})",
                hint="Export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH where the token is not in ~/.ray/auth_token.",
            )
        if response.status_code == httpx.codes.BAD_REQUEST and method == "PUT":
            raise DeployError(f"Serve refuses the config: {last_lines(response.text, 15)}")
        if response.is_error:
            raise ClusterError(
                f"the Ray dashboard at {self.dashboard_url} answered {response.status_code}: "
                f"{last_lines(response.text, 5)}"
            )
        return response


def _grows(answer: Mapping[str, Any]) -> bool | None:
    status = (answer.get("data") or {}).get("clusterStatus") or {}
    report = status.get("autoscalerReport") or {}
    types = [name for key in ("activeNodes", "idleNodes") for name in report.get(key) or ()]
    return may_grow(types)


def ray_token() -> str | None:
    """Return the token that Ray would send, None if token authentication is off or no token exists.

    Ray 2.60 turns it on by ``RAY_AUTH_MODE=token``, and looks in ``RAY_AUTH_TOKEN``, the file
    ``RAY_AUTH_TOKEN_PATH`` and ``~/.ray/auth_token``, in this order. Without the variable an existing file still
    means a local cluster with a token.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
