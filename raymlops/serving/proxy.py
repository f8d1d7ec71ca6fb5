"""Starting Serve with its HTTP options.

Owns host, port and kind of the proxy, which Serve fixes at its start. Knows nothing of applications.

Every Ray process reads ``RAY_SERVE_ENABLE_HA_PROXY`` when it imports Serve, so HAProxy needs it in the environment in
which the cluster is started; it cannot be switched on later.
"""

from __future__ import annotations

import os
import socket
from typing import Literal

from raymlops.errors import ClusterError, PortTakenError, UsageError

Proxy = Literal["python", "haproxy"]


def free_port(host: str) -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Check that a port can be listened on.

    Raises:
        PortTakenError: another process listens there.
        UsageError: the address is not one of this machine's.
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


def start_proxy(host: str, port: int, *, proxy: Proxy = "python") -> int:
    """Start Serve on the connected Ray cluster and return the port its proxy listens on.

    Does nothing where Serve already runs with the same host, and the same port or ``port`` 0.

    Raises:
        PortTakenError: another process listens on the port; nothing was started.
        ClusterError: Ray is not connected, or its Serve runs with another host, port or proxy, which it cannot change.
    """
    import ray
    from ray import serve

    if not ray.is_initialized():
        raise ClusterError("Ray is not connected, so Serve cannot be started")
    running = _running()
    if running is not None:
        if running[0] != host or (port and running[1] != port):
            raise ClusterError(
                f"Serve already listens on {running[0]}:{running[1]}; asked for {host}:{port}",
                hint="Serve cannot change its address while it runs: use that one, or shut Serve down first.",
            )
        return running[1]
    enabled = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") == "1"
    if enabled != (proxy == "haproxy"):
        raise ClusterError(
            f"asked for the {proxy} proxy, but this process runs with RAY_SERVE_ENABLE_HA_PROXY={int(enabled)}",
            hint="Set it before Ray starts: raymlops up --haproxy does.",
        )
    if port:
        check_port(host, port)
    chosen = port or free_port(host)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": chosen},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    return chosen


def _running() -> tuple[str, int] | None:
    """Return host and port of the Serve instance on this cluster, None where there is none."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None
    options = ray.get(controller.get_http_config.remote(), timeout=30)
    return str(options.host), int(options.port)
