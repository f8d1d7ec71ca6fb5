"""The proxies in force: what each one is, and whether the guard answers in it.

Owns how that is found out, by what each proxy answers, and what is missing of what a configuration wants. A cluster's
environment decides both at its start, so that nothing here can change them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import httpx

from raymlops.cluster.endpoint.haproxy_wrapper import TLS_CERT, TLS_KEY
from raymlops.config.serve import is_loopback
from raymlops.errors import UsageError
from raymlops.records import Record
from raymlops.serving.control.details import configs
from raymlops.serving.control.render import is_rendered
from raymlops.serving.names import GUARD, ROUTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.config.serve import ServeSection
    from raymlops.serving.control.address import Listening
    from raymlops.serving.control.details import Details

ASK_S = 3.0
START = "raymlops env ray start"
_KINDS: dict[str, Kind] = {"ProxyActor": "python", "HAProxyManager": "haproxy"}
"""By the class of its actor in Ray 2.60."""

Kind = Literal["python", "haproxy"]


class Actors(Protocol):
    """The part of ``ServeApi`` that tells proxies apart."""

    @property
    def is_local(self) -> bool:
        """Return whether the cluster runs on this machine."""

    def actor_classes(self) -> dict[str, str]:
        """Return the class of each actor, by its id."""


@dataclass(frozen=True)
class ProxyInForce(Record):
    """A proxy that runs."""

    node_ip: str
    kind: Kind | None
    """None for one of another kind than those of Ray 2.60."""
    guarded: bool | None
    """Whether the guard is in front of the models; None if it cannot be asked from here, or HAProxy has no model."""
    max_header_bytes: int | None = None
    """Of path and headers, by the guard."""
    plain: bool = False
    """Whether it answers without TLS, which the endpoint needs."""

    def __str__(self) -> str:
        names = {"python": "Python proxy", "haproxy": "HAProxy", None: "another proxy"}
        guard = {True: "with the guard", False: "WITHOUT the guard", None: "not asked for the guard from here"}
        return f"{names[self.kind]} on {self.node_ip}, {guard[self.guarded]}"


def proxies_in_force(
    details: Details, listens: Listening, *, api: Actors, ask: Callable[[str], Any] | None = None
) -> tuple[ProxyInForce, ...]:
    """Return the proxies of a running Serve, by node; ``ask`` returns the JSON at a URL, None if nobody answers.

    Raises:
        ClusterError: the dashboard does not answer.
    """
    rows = [row for row in (details.get("proxies") or {}).values() if row.get("actor_id")]
    if not rows:
        return ()
    classes = api.actor_classes()
    kinds = [_KINDS.get(classes.get(row["actor_id"], "")) for row in rows]
    hosts = [_host_of(row["node_ip"], listens, local=api.is_local) for row in rows]
    # The index above all: a model may have no replica now.
    route = min((config["route_prefix"] for config in configs(details).values() if _is_served(config)), default=None)

    answer_at = ask or _ask

    def guard(kind: Kind | None, url: str) -> Any:
        if kind != "haproxy":
            return answer_at(f"{url}{GUARD}")
        # The guard is in the replicas; HAProxy without our wrapper, on a node that was started otherwise, lists routes.
        if (routes := answer_at(f"{url}{ROUTES}")) and "error" not in routes:
            return {}
        # Its own text: no replica is up yet.
        return None if route is None else answer_at(f"{url}{route.rstrip('/')}{GUARD}") or None

    def look(kind: Kind | None, host: str | None) -> tuple[Any, bool]:
        if host is None:
            return None, False
        url = listens.url_at(host)
        found = guard(kind, url)
        if found is not None or not listens.tls:
            return found, False
        found = guard(kind, url.replace("https:", "http:", 1))  # its node may have been started without a certificate
        return found, found is not None

    with ThreadPoolExecutor(max_workers=min(16, len(rows))) as pool:
        answers = list(pool.map(look, kinds, hosts))
    return tuple(
        ProxyInForce(row["node_ip"], kind, *_judged(answer), plain)
        for row, kind, (answer, plain) in zip(rows, kinds, answers, strict=True)
    )


def shortcomings(proxies: Sequence[ProxyInForce], serve: ServeSection | None = None) -> tuple[str, ...]:
    """Return what the proxies lack: TLS, the guard, and the bound of headers that a configuration wants."""
    found = []
    if plain := [proxy.node_ip for proxy in proxies if proxy.plain]:
        found.append(
            f"the proxy on {', '.join(plain)} answers without TLS, in contrast to the head's: API keys are sent in the "
            f"clear. Start every node with {TLS_CERT} and {TLS_KEY} (`{START}`)"
        )
    if bare := [proxy.node_ip for proxy in proxies if proxy.guarded is False]:
        found.append(
            f"the proxy on {', '.join(bare)} runs without the guard: requests have no bounds of headers, time and size "
            f"before a model has them, and Serve's own errors are 500s. Start every node by `{START}`"
        )
    bounds = {proxy.max_header_bytes for proxy in proxies if proxy.max_header_bytes is not None}
    if serve is not None and bounds and bounds != {serve.max_header_bytes}:
        found.append(
            f"headers may have {' or '.join(map(str, sorted(bounds)))} bytes on this cluster, not the "
            f"{serve.max_header_bytes} of serve.max_header_bytes, which counts when a cluster starts. Start every node "
            f"with RAYMLOPS_MAX_HEADER_BYTES={serve.max_header_bytes}"
        )
    return tuple(found)


def refuse_other_proxy(proxies: Sequence[ProxyInForce], serve: ServeSection) -> None:
    """Refuse a configuration that names HAProxy where another proxy runs.

    Raises:
        UsageError: it does; no deploy can change that.
    """
    other = [proxy.node_ip for proxy in proxies if proxy.kind == "python"]
    if serve.proxy == "haproxy" and other:
        raise UsageError(
            f"serve.proxy is haproxy, but this cluster runs the Python proxy, on {', '.join(other)}",
            hint=f"HAProxy runs where the cluster was started with it: `{START}`, or raymlops up. "
            "serve.proxy=python accepts what runs.",
        )


def _host_of(node_ip: str, listens: Listening, *, local: bool) -> str | None:
    """Return where a proxy can be asked from here; None for one that listens on another machine's loopback."""
    if is_loopback(listens.host):
        return listens.host if local else None
    if is_loopback(node_ip) and not local:
        return None
    return node_ip if listens.everywhere else listens.host


def _is_served(config: Any) -> bool:
    return is_rendered(config) and bool(config.get("route_prefix"))


def _judged(answer: Any) -> tuple[bool | None, int | None]:
    if answer is None:
        return None, None
    guard = answer.get("guard") if isinstance(answer, dict) else None
    return (True, int(guard["max_header_bytes"])) if isinstance(guard, dict) else (False, None)


def _ask(url: str) -> Any:
    """Return the JSON at a URL, an empty object for another body; None if nobody answers, or a replica is missing."""
    try:
        # No key is sent, and a certificate has the names that callers know.
        with httpx.Client(timeout=ASK_S, trust_env=False, verify=False) as client:  # noqa: S501
            response = client.get(url)
    except httpx.HTTPError:
        return None
    if response.is_server_error:
        return None
    try:
        return response.json()
    except ValueError:
        return {}
