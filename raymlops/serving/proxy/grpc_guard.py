"""Guard of gRPC calls in a process that accepts them: who may send a message, and how many bytes arrive and wait.

Owns the bounds of messages before a replica's code has them. A key is checked before the first byte of its call's
message is read, compressed messages are refused by gRPC itself, and a message that arrives slowly takes a place of its
caller's key or address. Installed by ``serve_patches``; what a message says is the fronts' affair.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from raymlops.serving.asgi import too_large_body
from raymlops.serving.auth import secret_of
from raymlops.serving.proxy.bodies import WAITING_BYTES
from raymlops.serving.proxy.bounds import KNOWN, KnownBounds
from raymlops.serving.refusal import Refusal, grpc_code
from raymlops.serving.request import headers_in, headers_of, peer_of, request_id_of
from raymlops.serving.telemetry.metrics import count_refusal

QUICK_S = 0.25
SLOW_MESSAGES = 4
"""Places for messages that arrive slowly: ``WAITING_BYTES`` holds as many of the largest that gRPC accepts here."""
SLOW_S = 30.0
KEYED = frozenset({"ModelInfer", "ModelMetadata"})
"""Methods that need a key where the model does; the others are health checks."""
_BUSY = Refusal(503, "overloaded", "too many messages are arriving slowly; try again", retry_after_s=1.0)
_UNCOMPRESSED = ("grpc.compression_enabled_algorithms_bitset", 1)
"""gRPC refuses a compressed message by UNIMPLEMENTED, unread."""

Owner = tuple[bool, str]
"""Whether a caller has no verified key, and its address or the id of its key."""


class SlowPlaces:
    """The places of messages that arrive slowly. For one event loop."""

    def __init__(self) -> None:
        self._held: defaultdict[Owner, list[asyncio.Future[None]]] = defaultdict(list)

    def take(self, owner: Owner) -> asyncio.Future[None]:
        """Return a new place, which is done once another caller gets it.

        Where all are taken, the caller with most of them loses its oldest; callers without a key lose theirs first.

        Raises:
            Refusal: 503, this caller would have most.
        """
        place = asyncio.get_running_loop().create_future()
        self._held[owner].append(place)
        if sum(map(len, self._held.values())) > SLOW_MESSAGES:
            loser = max(self._held, key=lambda one: (one[0], len(self._held[one])))
            lost = place if loser == owner else self._held[loser][0]
            self.free(loser, lost)
            if lost is place:
                raise _BUSY
            lost.set_result(None)
        return place

    def free(self, owner: Owner, place: asyncio.Future[None]) -> None:
        """Give a place back; one that is lost already has been."""
        if place in self._held[owner]:
            self._held[owner].remove(place)
        if not self._held[owner]:
            del self._held[owner]


class GrpcGuard:
    """Reads the messages of calls for Serve's handlers. For one event loop.

    ``most`` bounds the bytes of all messages that wait for an answer. After ``quick_s`` a message needs a place, which
    it has for ``slow_s``.
    """

    def __init__(
        self,
        *,
        known: KnownBounds = KNOWN,
        most: int = WAITING_BYTES,
        quick_s: float = QUICK_S,
        slow_s: float = SLOW_S,
    ) -> None:
        self._known, self._most, self._quick_s, self._slow_s = known, most, quick_s, slow_s
        self._slow = SlowPlaces()
        self._held = 0

    async def call(self, handler: Any, service_method: str, messages: Any, context: Any) -> Any:
        """Answer a call by a handler of its one message, or refuse it."""
        size = 0
        try:
            request = await self._arrived(messages, self._owner(service_method, context))
            size = self._hold(request)
            return await handler.unary_unary(request, context)
        except Refusal as refusal:
            return _refused(refusal, context)
        finally:
            self._held -= size

    def _hold(self, request: Any) -> int:
        size = len(request) if isinstance(request, bytes) else 0
        most = self._known.most_message_bytes
        if most is not None and size > most:
            raise too_large_body(most)
        if self._held + size > self._most:
            raise Refusal(503, "overloaded", f"{self._held} bytes of messages are held already; try again")
        self._held += size
        return size

    def _owner(self, service_method: str, context: Any) -> Owner:
        """Return whose places a call takes.

        Raises:
            Refusal: 401 without a key where one is needed, 403 for the list of applications.
        """
        _, _, method = service_method.rpartition("/")
        if method == "ListApplications":
            raise Refusal(403, "forbidden", "applications are not listed")
        headers = headers_of(headers_in(context.invocation_metadata() or ()), b"application")
        name = headers.get(b"application", b"").decode("latin-1").rpartition("--v")[0]  # empty for the index, as INDEX
        try:
            key_id = self._known.key_of(name, secret_of(headers))
        except Refusal:
            if method in KEYED:
                raise
            key_id = None
        return (False, key_id) if key_id is not None else (True, peer_of(headers) or _address(context.peer()))

    async def _arrived(self, messages: Any, owner: Owner) -> Any:
        """Return the message of a call.

        Raises:
            Refusal: 503, there is no place for it, or no longer; 408, it did not arrive in time; 400, there is none.
        """
        reading = asyncio.ensure_future(anext(messages, None))
        place = None
        try:
            await asyncio.wait({reading}, timeout=self._quick_s)
            if not reading.done():
                place = self._slow.take(owner)
                await asyncio.wait({reading, place}, timeout=self._slow_s, return_when=asyncio.FIRST_COMPLETED)
                if place.done() and not reading.done():
                    raise _BUSY
            if not reading.done():
                raise Refusal(408, "slow_body", f"the message was not complete within {self._slow_s:g} s")
            if reading.result() is None:
                raise Refusal(400, "empty_body", "the call has no message")
            return reading.result()
        finally:
            reading.cancel()
            if place is not None:
                self._slow.free(owner, place)


def guard_grpc_calls(guard: GrpcGuard | None = None) -> None:
    """Let a guard read the messages of all gRPC calls that this process handles, and list no applications.

    gRPC keeps a message for as long as its client likes to send it, and decompresses it before any handler sees it.
    On the wire a stream of one message is the same as one message, but it is read by us.
    """
    from ray.serve._private import grpc_util

    server_class, defaults = grpc_util.gRPCGenericServer, grpc_util.DEFAULT_GRPC_SERVER_OPTIONS
    override = server_class._override_method_handler  # noqa: SLF001 - Serve's, for each method
    if _UNCOMPRESSED in defaults:
        return
    guarded = guard or GrpcGuard()

    def override_method_handler(server: Any, service_method: str, method_handler: Any) -> Any:
        handler = override(server, service_method, method_handler)
        if handler.request_streaming or handler.response_streaming:
            return handler

        async def call(messages: Any, context: Any) -> Any:
            return await guarded.call(handler, service_method, messages, context)

        return handler._replace(request_streaming=True, stream_unary=call)

    grpc_util.DEFAULT_GRPC_SERVER_OPTIONS = [*defaults, _UNCOMPRESSED]
    server_class._override_method_handler = override_method_handler  # noqa: SLF001


def _address(peer: str) -> str:
    """Return the address in what gRPC calls a peer, ``ipv4:10.0.0.1:4711``."""
    return peer.rpartition(":")[0]


def _refused(refusal: Refusal, context: Any) -> bytes:
    from grpc import StatusCode

    from raymlops.serving.protocols.grpc import details

    count_refusal(refusal, protocol="grpc")
    code = grpc_code(refusal.status)
    context.set_code(next(status for status in StatusCode if status.value[0] == code))
    context.set_details(details(refusal, request_id_of(None)))
    return b""
