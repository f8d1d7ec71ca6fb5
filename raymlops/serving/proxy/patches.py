"""What Ray Serve (2.60) leaves open in the processes that take requests, put right there.

Owns the names that are replaced, each with what is wrong with the original. Called by the hook of ``middleware``,
which Serve runs in every such process before it listens; nothing here is for any other process.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ALL_INTERFACES = "[::]:"
AHEAD_BYTES = 1024 * 1024
"""How much of a body waits in the proxy for the replica that reads it, beyond which the client has to wait."""
MESSAGE_BYTES = 512
"""What a message of ASGI takes beside its bytes, so that a great many small ones are bounded too."""


def patch_serve() -> None:
    """Put all right, with Serve's controller as the one who knows the HTTP host."""
    bind_grpc_to(http_host)
    drop_slow_headers()
    bound_reading_ahead()


def bind_grpc_to(host: Callable[[], str | None]) -> None:
    """Let gRPC listen where HTTP does.

    Serve has an option for the port of gRPC and none for its address: it binds all interfaces, also where HTTP was told
    to stay on loopback, and asks for no key by itself. The one function that opens the port is looked up when it is
    needed; should another Ray open it in another way, then it does so as it pleases, and ``raymlops status`` shows it.
    """
    from ray.serve._private import default_impl

    original = default_impl.add_grpc_address
    if getattr(original, "asks_for_the_host", False):
        return

    def add_grpc_address(grpc_server: Any, server_address: str) -> None:
        original(grpc_server, address_of(server_address, host))

    add_grpc_address.asks_for_the_host = True  # type: ignore[attr-defined]
    default_impl.add_grpc_address = add_grpc_address


def address_of(asked: str, host: Callable[[], str | None]) -> str:
    """Return the address to bind instead of the one that Serve asks for; another than all interfaces is kept."""
    if not asked.startswith(ALL_INTERFACES):
        return asked
    named = host()
    if named in {None, "", "0.0.0.0", "::"}:  # noqa: S104 - what somebody asked for
        return asked
    return f"{f'[{named}]' if ':' in str(named) else named}:{asked.removeprefix(ALL_INTERFACES)}"


def http_host() -> str | None:
    """Ask Serve's controller where HTTP listens; while the proxy starts, as a replica itself does in Ray 2.60."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    host: str | None = ray.get(controller.get_http_config.remote(), timeout=30).host
    return host


def drop_slow_headers() -> None:
    """Let uvicorn use ``connections.Connection``: by itself it bounds neither the time nor the size of headers.

    Its table of protocols is by name, and Serve asks for none but the default.
    """
    from uvicorn.config import HTTP_PROTOCOLS

    HTTP_PROTOCOLS["auto"] = "raymlops.serving.proxy.connections:Connection"


def bound_reading_ahead(most: int = AHEAD_BYTES) -> None:
    """Let the Python proxy read a body no further ahead of its replica than ``most`` bytes.

    Its task for each request puts whatever comes into a queue, also while no replica has the request: as fast as a
    client sends, and without end. Bodies to models are complete by then (see ``middleware``); this is for all others.
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
