"""Starting Serve with its HTTP and gRPC options.

Owns host, ports and kind of the proxy, which Serve fixes at its start. Knows nothing of applications.

Every Ray process reads ``RAY_SERVE_ENABLE_HA_PROXY`` when it imports Serve, so HAProxy needs it in the environment in
which the cluster is started; it cannot be switched on later.
"""

from __future__ import annotations

import os
import socket
from typing import Literal

from raymlops.config.serve import grpc_options
from raymlops.errors import ClusterError, PortTakenError, UsageError

Proxy = Literal["python", "haproxy"]


def free_port(host: str) -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int, *, setting: str = "serve.port") -> None:
    """Check that a port can be listened on; ``setting`` is what the user is to change where it cannot.

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
                hint=f"Set {setting} to another one{', or to 0 for any free one' if setting == 'serve.port' else ''}.",
            ) from error


def start_proxy(host: str, port: int, *, proxy: Proxy = "python", grpc_port: int | None = None) -> int:
    """Start Serve on the connected Ray cluster and return the port its proxy listens on for HTTP.

    Does nothing where Serve already runs with the same host, and the same port or ``port`` 0. It listens for gRPC only
    where ``grpc_port`` is given.

    Raises:
        PortTakenError: another process listens on a port; nothing was started.
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
        if grpc_port not in {None, running[2]}:
            found = "without gRPC" if running[2] is None else f"with gRPC on port {running[2]}"
            raise ClusterError(
                f"Serve already runs {found}; asked for port {grpc_port}",
                hint="Serve cannot open it while it runs: start it with that port, as raymlops up --grpc-port does.",
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
    if grpc_port is not None:
        check_port(host, grpc_port, setting="serve.grpc_port")
    chosen = port or free_port(host)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": chosen},
        grpc_options=None if grpc_port is None else grpc_options(grpc_port),
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    return chosen


def _running() -> tuple[str, int, int | None] | None:
    """Return host, port and gRPC's port of the Serve instance on this cluster, None where there is none."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None
    options = ray.get(controller.get_http_config.remote(), timeout=30)
    grpc = ray.get(controller.get_grpc_config.remote(), timeout=30)
    return str(options.host), int(options.port), int(grpc.port) if grpc.grpc_servicer_functions else None
