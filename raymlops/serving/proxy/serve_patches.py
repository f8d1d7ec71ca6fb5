"""Patches of Ray Serve (2.60) in the processes that accept requests, and one in those that answer them.

Owns the names that are replaced, and why. Called by the hook in ``middleware``, which Serve runs in every process that
accepts requests before it listens, and by the replicas.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from raymlops.serving.proxy.grpc_guard import guard_grpc_calls

if TYPE_CHECKING:
    from collections.abc import Callable

ALL_INTERFACES = "[::]:"
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; those of TLS 1.3 are fixed."""
AHEAD_BYTES = 1024 * 1024
"""How much of a body the proxy buffers for the replica that reads it; then the client has to wait."""
MESSAGE_BYTES = 512
"""Overhead of an ASGI message, so that many small ones are bounded too."""


def patch_serve() -> None:
    """Apply all patches, with the HTTP options from Serve's controller."""
    if is_plain_fallback() and controller("get_proxy_location") != "EveryNode":
        bind_http_to_loopback()
        bind_grpc_as(loopback)
    else:
        bind_grpc_as(lambda: controller("get_http_config"))
    guard_grpc_calls()
    restrict_ciphers()
    drop_slow_headers()
    bound_reading_ahead()


def look_up_proxies_late() -> None:
    """Let a replica look up the Python proxy that has a request's body only once it fetches the body.

    Serve does so for each request, on the event loop; a small body travels with its request.
    """
    from ray.serve._private.common import StreamingHTTPRequest

    original = StreamingHTTPRequest.receive_asgi_messages.fget
    if getattr(original, "late", False):
        return

    def receive_asgi_messages(request: Any) -> Any:
        def fetch(metadata: Any) -> Any:
            return original(request)(metadata)

        return fetch

    receive_asgi_messages.late = True  # type: ignore[attr-defined]
    StreamingHTTPRequest.receive_asgi_messages = property(receive_asgi_messages)


def bind_grpc_as(http: Callable[[], Any]) -> None:
    """Bind gRPC to the host of HTTP, and require TLS with the same files if HTTP does.

    Serve has an option for gRPC's port and none for its address and its certificate: it binds all interfaces, also
    where HTTP is bound to loopback, and requires no key by itself. Renewed files need a restart of Serve, as for HTTP.
    The function that opens the port is looked up when it is called; if another Ray opens it in another way, this has no
    effect, and ``raymlops status`` shows the address.
    """
    from ray.serve._private import default_impl

    original = default_impl.add_grpc_address
    if getattr(original, "as_http", False):
        return

    def add_grpc_address(grpc_server: Any, server_address: str) -> None:
        options = http()
        address = address_of(server_address, options.host)
        if not (options.ssl_keyfile and options.ssl_certfile):
            original(grpc_server, address)
            return
        import grpc

        pair = Path(options.ssl_keyfile).read_bytes(), Path(options.ssl_certfile).read_bytes()
        grpc_server.add_secure_port(address, grpc.ssl_server_credentials([pair]))

    add_grpc_address.as_http = True  # type: ignore[attr-defined]
    default_impl.add_grpc_address = add_grpc_address


def is_plain_fallback() -> bool:
    """Return whether this process is Serve's fallback proxy behind HAProxy with TLS.

    That is a Python proxy on the head, to which HAProxy sends what no replica can take. Serve gives it the endpoint's
    address, where it would answer everybody without TLS. HAProxy of other nodes asks it there, as it asks replicas.
    """
    import ray
    from ray.serve._private.constants import SERVE_PROXY_NAME

    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1" or not os.environ.get("RAYMLOPS_TLS_CERT"):
        return False
    return (ray.get_runtime_context().get_actor_name() or "").startswith(SERVE_PROXY_NAME)


def bind_http_to_loopback() -> None:
    """Let Serve's HTTP server listen on loopback, whatever its options say: HAProxy on this machine asks it there.

    The function that starts it is a proxy's own copy, and the options are too; what it calls is not.
    """
    from ray._common.network_utils import get_localhost_ip
    from ray.serve._private import http_util

    host = get_localhost_ip()

    class LoopbackSocket(socket.socket):
        def __init__(self, family: int, kind: int) -> None:
            del family  # of the endpoint's address
            super().__init__(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)

        def bind(self, address: Any) -> None:
            super().bind((host, address[1]))

    http_util.socket = SimpleNamespace(**{**vars(socket), "socket": LoopbackSocket})


def address_of(requested: str, named: str | None) -> str:
    """Return the address to bind instead of all interfaces; another one is kept."""
    if not requested.startswith(ALL_INTERFACES):
        return requested
    if named in {None, "", "0.0.0.0", "::"}:  # noqa: S104 - explicitly requested
        return requested
    return f"{f'[{named}]' if ':' in str(named) else named}:{requested.removeprefix(ALL_INTERFACES)}"


def controller(method: str) -> Any:
    """Return what Serve's controller answers while a proxy starts; a replica of Ray 2.60 asks it so too."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    actor = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    return ray.get(getattr(actor, method).remote(), timeout=30)


def loopback() -> Any:
    """Return options of a server that listens on this machine alone."""
    from ray._common.network_utils import get_localhost_ip
    from ray.serve.config import HTTPOptions

    return HTTPOptions(host=get_localhost_ip())


def restrict_ciphers() -> None:
    """Let uvicorn offer the ciphers that HAProxy does: its default is those that TLS 1.0 had, beside TLS 1.3."""
    from uvicorn import config

    original = config.create_ssl_context
    if getattr(original, "restricts_ciphers", False):
        return

    def create_ssl_context(*arguments: Any, **options: Any) -> Any:
        context = original(*arguments, **{**options, "ciphers": CIPHERS})
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    create_ssl_context.restricts_ciphers = True  # type: ignore[attr-defined]
    config.create_ssl_context = create_ssl_context


def drop_slow_headers() -> None:
    """Make uvicorn use ``connections.Connection``: by itself it bounds neither the time nor the size of headers.

    Its table of protocols is by name, and Serve uses the default.
    """
    from uvicorn.config import HTTP_PROTOCOLS

    HTTP_PROTOCOLS["auto"] = "raymlops.serving.proxy.connections:Connection"


def bound_reading_ahead(most: int = AHEAD_BYTES) -> None:
    """Limit how far the Python proxy reads a body ahead of its replica to ``most`` bytes.

    Its task for each request queues data as fast as a client sends it, without a limit, also while no replica has the
    request. Bodies to models are complete by then (see ``middleware``); this is for all others.
    """
    from ray.serve._private.http_util import MessageQueue

    original = MessageQueue.__call__
    if getattr(original, "bounds_reading_ahead", False):
        return
    take = MessageQueue.get_messages_nowait

    async def put(queue: Any, message: Any) -> None:
        await original(queue, message)
        if message["type"] != "http.request":
            return
        queue.ahead = getattr(queue, "ahead", 0) + len(message.get("body", b"")) + MESSAGE_BYTES
        if queue.ahead > most:
            queue.taken = asyncio.Event()
            await queue.taken.wait()

    def get_messages_nowait(queue: Any) -> Any:
        queue.ahead = 0
        if taken := getattr(queue, "taken", None):
            taken.set()
        return take(queue)

    put.bounds_reading_ahead = True  # type: ignore[attr-defined]
    MessageQueue.__call__ = put
    MessageQueue.get_messages_nowait = get_messages_nowait
