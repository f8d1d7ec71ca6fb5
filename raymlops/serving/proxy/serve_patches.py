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

from raymlops.serving.proxy.bodies import WAITING_BYTES
from raymlops.serving.refusal import Refusal, grpc_code
from raymlops.serving.request import request_id_of

if TYPE_CHECKING:
    from collections.abc import Callable

ALL_INTERFACES = "[::]:"
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; those of TLS 1.3 are fixed."""
AHEAD_BYTES = 1024 * 1024
"""How much of a body the proxy buffers for the replica that reads it; then the client has to wait."""
QUICK_S = 0.25
SLOW_MESSAGES = 4
"""As many of the largest messages as all may hold together."""
SLOW_S = 30.0
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


def guard_grpc_calls(most: int = WAITING_BYTES, *, quick_s: float = QUICK_S, slow_s: float = SLOW_S) -> None:
    """Limit the messages of all gRPC calls that a process handles to ``most`` bytes, and list no applications.

    A message is at most as large as Serve's own bound (64 MB), far above that of most models, and kept while its call
    waits for a replica: enough calls would fill any memory. So would messages that are never complete, which gRPC keeps
    for as long as their clients like: after ``quick_s`` only a few may still be arriving, for ``slow_s`` at most. Serve
    lists all applications without a key, also those that require one.
    """
    from ray.serve._private.grpc_util import gRPCGenericServer

    original = gRPCGenericServer.__init__
    if getattr(original, "guards_calls", False):
        return

    def init(server: Any, factory: Callable[..., Any], **options: Any) -> None:
        original(server, guarded_calls(factory, most), **options)

    init.guards_calls = True  # type: ignore[attr-defined]
    gRPCGenericServer.__init__ = init
    override = gRPCGenericServer._override_method_handler  # noqa: SLF001 - Serve's own, for each method
    slow = asyncio.Semaphore(SLOW_MESSAGES)

    def override_method_handler(server: Any, service_method: str, method_handler: Any) -> Any:
        handler = override(server, service_method, method_handler)
        if handler.request_streaming or handler.response_streaming:
            return handler

        # On the wire a stream of one message is the same, but it is read by us.
        async def call(messages: Any, context: Any) -> Any:
            try:
                request = await _arrived(messages, slow, quick_s=quick_s, slow_s=slow_s)
            except Refusal as refusal:
                return _refused(refusal, context)
            return await handler.unary_unary(request, context)

        return handler._replace(request_streaming=True, stream_unary=call)

    gRPCGenericServer._override_method_handler = override_method_handler  # noqa: SLF001


async def _arrived(messages: Any, slow: asyncio.Semaphore, *, quick_s: float, slow_s: float) -> Any:
    """Return the message of a call; one that is ``slow`` needs one of these places.

    Raises:
        Refusal: 503, there is none left; 408, it did not arrive in time; 400, there is none.
    """
    reading = asyncio.ensure_future(anext(messages, None))
    try:
        await asyncio.wait({reading}, timeout=quick_s)
        if not reading.done():
            if slow.locked():
                raise Refusal(503, "overloaded", "too many messages are arriving slowly; try again", retry_after_s=1.0)
            async with slow:
                await asyncio.wait({reading}, timeout=slow_s)
        if not reading.done():
            raise Refusal(408, "slow_body", f"the message was not complete within {slow_s:g} s")
        if reading.result() is None:
            raise Refusal(400, "empty_body", "the call has no message")
        return reading.result()
    finally:
        reading.cancel()


def guarded_calls(factory: Callable[..., Any], most: int) -> Callable[..., Any]:
    """Return a factory of a server's handlers, whose unary calls are guarded (see ``guard_grpc_calls``)."""
    held = 0

    def make(*, service_method: str, streaming_type: Any) -> Any:
        handler = factory(service_method=service_method, streaming_type=streaming_type)
        if streaming_type.value != "unary_unary":
            return handler

        async def call(request: Any, context: Any) -> Any:
            nonlocal held
            if service_method.endswith("/ListApplications"):
                return _refused(Refusal(403, "forbidden", "applications are not listed"), context)
            size = len(request) if isinstance(request, bytes) else 0
            if held + size > most:
                waiting = f"{held} bytes of messages are held already; try again"
                return _refused(Refusal(503, "overloaded", waiting), context)
            held += size
            try:
                return await handler(request, context)
            finally:
                held -= size

        return call

    return make


def _refused(refusal: Refusal, context: Any) -> bytes:
    from grpc import StatusCode

    from raymlops.serving.protocols.grpc import details

    code = grpc_code(refusal.status)
    context.set_code(next(status for status in StatusCode if status.value[0] == code))
    context.set_details(details(refusal, request_id_of(None)))
    return b""


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
