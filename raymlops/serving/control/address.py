"""The actual address of a running Serve, which may differ from the configured one.

Owns how it is determined. A section's ``host`` counts only if Serve does not run yet, while whether callers need an API
key by default depends on who can reach it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from raymlops.cluster.endpoint.haproxy import WITH_TLS
from raymlops.cluster.endpoint.tls import speaks_tls
from raymlops.cluster.ports import listeners
from raymlops.config.serve import is_loopback
from raymlops.errors import ClusterError, UsageError
from raymlops.serving.control.details import configs
from raymlops.serving.control.render import is_rendered

if TYPE_CHECKING:
    from raymlops.config.serve import ServeSection
    from raymlops.serving.control.details import Details

EVERYWHERE = "[::]"
_START = (
    "Nodes start with it: raymlops up --tls-cert FILE --tls-key FILE; elsewhere RAYMLOPS_TLS_CERT and RAYMLOPS_TLS_KEY "
    "for `raymlops env ray start`, or serve.proxy=python where Ray's own proxy runs, after a restart of Serve."
)


class Starts(Protocol):
    """The part of ``ServeApi`` that says how a cluster was started."""

    @property
    def is_local(self) -> bool:
        """Return whether the cluster runs on this machine."""

    def proxy_to_start(self) -> str | None:
        """Return the proxy that Serve starts on this cluster, None if that is not known."""


@dataclass(frozen=True)
class Listening:
    """The addresses on which Serve listens."""

    host: str
    port: int
    grpc_host: str | None = None
    """None without gRPC."""
    grpc_port: int | None = None
    tls: bool = False
    """Whether HTTP and gRPC need TLS."""
    node_ip: str | None = None
    """A node on which it listens, where that is another machine than this one."""

    @property
    def everywhere(self) -> bool:
        """Return whether it listens on all addresses of a node."""
        return self.host in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound

    @property
    def address(self) -> str:
        """Return the address at which the proxy is reached from here."""
        return (self.node_ip or "127.0.0.1") if self.everywhere else self.host

    @property
    def base_url(self) -> str:
        """Return the URL of the proxy."""
        return self.url_at(self.address)

    def url_at(self, host: str) -> str:
        """Return the URL of a proxy at another address."""
        return f"{'https' if self.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def reach(self) -> str:
        """Return the host that decides whether keys are required by default: one that others reach, if any."""
        if is_loopback(self.host) and self.grpc_host is not None:
            return self.grpc_host
        return self.host

    @property
    def exposed(self) -> str | None:
        """Return the address that other machines can reach, in words; None if only this one can."""
        if not is_loopback(self.host):
            return f"{self.host}:{self.port}"
        if self.grpc_host is not None and not is_loopback(self.grpc_host):
            return f"{self.grpc_host}:{self.grpc_port} by gRPC"
        return None


def listening(details: Details, api: Starts) -> Listening | None:
    """Return where a running Serve listens; None if it does not run.

    Serve (2.60) has no option for the address of gRPC and binds all interfaces, unless the cluster was started with our
    patch. On this machine the sockets show it. For another machine all interfaces are assumed. Nor does Serve know
    whether HAProxy needs TLS: on this machine it is asked, on another one the label of its head says it.

    Raises:
        ClusterError: the dashboard does not answer.
    """
    options = details.get("http_options")
    if not options:
        return None
    host, port, local = options["host"], options["port"], api.is_local
    nodes = (
        [] if local else [proxy["node_ip"] for proxy in (details.get("proxies") or {}).values() if "node_ip" in proxy]
    )
    found = Listening(host, port, node_ip=min(nodes, default=None))
    tls = options.get("ssl_certfile") or (_asked_for_tls(found) if local else api.proxy_to_start() == WITH_TLS)
    found = replace(found, tls=bool(tls))
    grpc = details.get("grpc_options") or {}
    if not grpc.get("grpc_servicer_functions"):
        return found
    grpc_port = grpc["port"]
    if not is_loopback(host):
        return replace(found, grpc_host=host, grpc_port=grpc_port)
    return replace(found, grpc_host=_bound(grpc_port) if local else EVERYWHERE, grpc_port=grpc_port)


def started_otherwise(details: Details, listens: Listening, *, serve: ServeSection, api: Starts) -> list[str]:
    """Return how a running Serve was started, where a section requests something else: only a restart changes it.

    Raises:
        UsageError: the section has a certificate, and nothing shows that Serve answers with TLS.
        ClusterError: the dashboard does not answer.
    """
    if serve.tls is not None and not listens.tls:
        if api.is_local:
            raise UsageError(f"serve.tls_cert is set, and Serve answers at {listens.base_url} without TLS", hint=_START)
        if not (listens.exposed and _asked_for_tls(listens)):
            raise UsageError(
                f"serve.tls_cert is set, and nothing shows from here that Serve answers at {listens.base_url} with TLS",
                hint=_START,
            )
    wanted = "EveryNode" if serve.proxy_location == "every_node" else "HeadOnly"
    location = details.get("proxy_location") or wanted
    if wanted == "EveryNode" and location != wanted:
        return ["serve.proxy_location is every_node, and Serve was started with a proxy on the head only"]
    return []


def tls_at_start(tls: tuple[str, str] | None, proxy: str | None) -> tuple[str, str] | None:
    """Return the certificate to start Serve with; None where the cluster's HAProxy has one from its environment.

    ``proxy`` is the one that Serve will start. What Serve listens on is never guessed: without TLS, keys would travel
    in the clear.

    Raises:
        ClusterError: that proxy would answer without TLS, or is not known.
    """
    if tls is None or proxy == WITH_TLS:
        return None
    if proxy == "python":
        return tls
    if proxy == "haproxy":
        raise ClusterError("serve.tls_cert is set, and this cluster starts HAProxy without a certificate", hint=_START)
    raise ClusterError(
        "serve.tls_cert is set, and nothing shows which proxy this cluster starts",
        hint="Start every node by `raymlops env ray start`; serve.proxy=python says that it is Ray's own.",
    )


def _asked_for_tls(listens: Listening) -> bool:
    try:
        return speaks_tls(listens.address, listens.port)
    except OSError:
        return False


def keyless(details: Details) -> list[str]:
    """Return the models on a Serve, of every state, whose callers need no API key."""
    return sorted(
        config["args"]["name"]
        for config in configs(details).values()
        if is_rendered(config) and config.get("route_prefix") and "name" in (config.get("args") or {})
        if not _access(config).get("required", False)
    )


def open_to_others(names: list[str], listens: Listening | None) -> str | None:
    """Return a note if other machines can reach these models without a key."""
    if listens is None or listens.exposed is None or not names:
        return None
    answer = "answers" if len(names) == 1 else "answer"
    return (
        f"{', '.join(names)} {answer} without an API key, and Serve listens on {listens.exposed}: anyone who reaches "
        "that address may use them. serve.auth: keys requires keys (raymlops keys create makes one)"
    )


def _bound(port: int) -> str | None:
    hosts = [listener.host for listener in listeners() if listener.port == port]
    return next((host for host in hosts if not is_loopback(host)), hosts[0] if hosts else None)


def _access(config: dict[str, Any]) -> dict[str, Any]:
    (options,) = config["deployments"]
    access: dict[str, Any] = (options.get("user_config") or {}).get("access", {})
    return access
