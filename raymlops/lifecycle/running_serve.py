"""A running Serve as ``status``, ``doctor`` and ``deploy`` look at it: its models, its proxies, who reaches them.

Owns the requests to it, which start nothing and do not wait, and what is to be said of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.errors import ClusterError, RaymlopsError
from raymlops.lifecycle.sources import Source, stores_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.cluster.doctor import Finding
    from raymlops.config.schema import ProjectSpec
    from raymlops.serving.control.address import Listening
    from raymlops.serving.control.proxies import ProxyInForce
    from raymlops.serving.control.rest_api import ServeApi

ANSWER_S = 5.0


@dataclass(frozen=True)
class RunningServe:
    """What Serve runs on a cluster."""

    dashboard_url: str
    details: dict[str, Any]
    listens: Listening
    proxies: tuple[ProxyInForce, ...]
    exposed: str | None
    """About models that answer other machines without a key; None without such models."""
    lacks: tuple[str, ...]
    """What the proxies lack."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return all that is to be said."""
        return (*filter(None, [self.exposed]), *self.lacks)

    @property
    def reach(self) -> str:
        """Return the host that decides whether keys are required by default."""
        return self.listens.reach

    @property
    def healthy(self) -> bool:
        """Return whether Serve calls one of its proxies healthy."""
        return any(proxy.get("status") == "HEALTHY" for proxy in (self.details.get("proxies") or {}).values())

    @property
    def grpc_address(self) -> str | None:
        """Return the address of gRPC, None without it."""
        listens = self.listens
        return None if listens.grpc_port is None else f"{listens.grpc_host}:{listens.grpc_port}"

    def models(self) -> list[dict[str, Any]]:
        """Return the models that are live by what Serve says: name, version and path."""
        from raymlops.serving.control.details import configs, running_replicas
        from raymlops.serving.control.render import is_rendered

        return [
            {"name": config["args"]["name"], "version": str(config["args"]["version"]), "path": config["route_prefix"]}
            for name, config in sorted(configs(self.details).items())
            if is_rendered(config) and config.get("route_prefix") and "version" in (config.get("args") or {})
            if running_replicas(self.details, name)
        ]


@dataclass(frozen=True)
class NamedCluster:
    """A cluster that a configuration or the environment names, and what answers there."""

    dashboard_url: str
    serve: RunningServe | None
    """None if Serve does not run, or the dashboard does not answer."""
    problem: str | None = None
    """Why the dashboard does not answer."""


def named_cluster(
    source: Source | None = None, *, root: str | None = None, overrides: Sequence[str] = (), env: str | None = None
) -> NamedCluster | None:
    """Return the cluster that ``source`` or the environment names, or that ``up`` started, under ``root`` if given.

    None if there is none, or it could only be found by joining it.
    """
    from raymlops.cluster import upfile
    from raymlops.cluster.dashboard import VARIABLES, dashboard
    from raymlops.serving.control.rest_api import ServeApi

    try:
        if root is not None:
            record = upfile.read(Path(root).expanduser().absolute())
            if record is None:
                return None
            url, token = record.dashboard_url, Path(record.token_path).read_text(encoding="utf-8").strip()
        else:
            spec = stores_of(source, overrides=overrides, env=env)
            named = spec.cluster.dashboard or any(os.environ.get(name) for name in VARIABLES)
            if not named and upfile.read() is None:
                return None
            with dashboard(spec) as found:
                url, token = found.url, found.token() or ""
    except (RaymlopsError, OSError):
        return None
    try:
        return NamedCluster(url, running_serve(ServeApi(url, token or None, timeout_s=ANSWER_S)))
    except ClusterError as error:
        return NamedCluster(url, None, error.message)


def running_serve(api: ServeApi, spec: ProjectSpec | None = None) -> RunningServe | None:
    """Return what Serve runs, None if it does not; ``spec`` says what its proxies should be.

    Raises:
        ClusterError: the dashboard does not answer, or refuses us.
    """
    from raymlops.serving.control.address import keyless, listening, open_to_others
    from raymlops.serving.control.proxies import proxies_in_force, shortcomings

    details = api.get()
    listens = listening(details, api)
    if listens is None:
        return None
    proxies = proxies_in_force(details, listens, api=api)
    exposed = open_to_others(keyless(details), listens)
    lacks = shortcomings(proxies, None if spec is None else spec.serve)
    return RunningServe(api.dashboard_url, details, listens, proxies, exposed, lacks)


def check_serve(api: ServeApi, spec: ProjectSpec) -> tuple[Listening | None, tuple[str, ...]]:
    """Return where Serve listens, and what it lacks of a configuration, before a version is brought up on it.

    Serve that does not run yet has no address, and lacks nothing: it starts as configured.

    Raises:
        UsageError: the configuration names HAProxy, and another proxy runs; or it has a certificate, and nothing shows
            that Serve answers with TLS.
        ClusterError: the dashboard does not answer, or refuses us.
    """
    from raymlops.serving.control.address import started_otherwise
    from raymlops.serving.control.proxies import refuse_other_proxy

    found = running_serve(api, spec)
    if found is None:
        return None, ()
    refuse_other_proxy(found.proxies, spec.serve)
    return found.listens, (*found.lacks, *started_otherwise(found.details, found.listens, serve=spec.serve, api=api))


def findings(*, root: str | None = None) -> list[Finding]:
    """Return the warnings as findings of ``doctor``; empty without any."""
    from raymlops.cluster.doctor import Finding

    found = named_cluster(root=root)
    if found is None or found.serve is None:
        return []
    named = [("open models", found.serve.exposed), *(("proxies", lack) for lack in found.serve.lacks)]
    judged = [(name, *text.partition(". ")) for name, text in named if text is not None]
    return [Finding(name, ok=False, message=message, fix=fix) for name, message, _, fix in judged]
