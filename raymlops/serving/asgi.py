"""ASGI requests and responses: types, relevant headers, bounded reading of bodies.

Owns the HTTP code that ``replica``, ``index`` and ``proxy`` share. Pure: knows nothing of models or Serve.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from raymlops.serving.arrival import ARRIVED
from raymlops.serving.refusal import Refusal, error_body, refusal_headers
from raymlops.serving.request import request_id_of

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = b"application/json"
HTML = b"text/html; charset=utf-8"
PRIVATE = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
"""Headers of pages, which differ by key."""
BODY = "raymlops.body"
"""Key of an ASGI scope for a body that ``middleware`` has read already; None for one that it does not read, as its
caller has no valid key."""
COUNTED = "raymlops.counted"
"""Key for that the values of that body were counted on its way here, and are not too many."""
PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP response. ``request_id`` is not in ``headers``: Serve's proxy adds it, and would add it twice."""

    status: int
    body: bytes
    request_id: str
    headers: tuple[tuple[bytes, bytes], ...]


def make_reply(
    status: int, body: bytes, request_id: str, *, kind: bytes = JSON, extra: tuple[tuple[bytes, bytes], ...] = ()
) -> Reply:
    """Return a response with its type and length."""
    length = str(len(body)).encode()
    return Reply(status, body, request_id, ((b"content-type", kind), (b"content-length", length), *extra))


async def send_reply(reply: Reply, send: Send) -> None:
    """Send a response with its request id, as an ASGI application without Serve's proxy."""
    headers = [*reply.headers, (b"x-request-id", reply.request_id.encode())]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def refusal_reply(refusal: Refusal, scope: Scope, *, extra: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    """Return the response to a request that is refused before a model's front has it."""
    request_id = request_id_of(next((value for name, value in scope["headers"] if name == b"x-request-id"), None))
    body = error_body(refusal, request_id, path=scope["path"])
    return make_reply(refusal.status, body, request_id, extra=(*extra, *refusal_headers(refusal)))


async def read_body(scope: Scope, receive: Receive, headers: Mapping[bytes, bytes], *, limit: int) -> bytes:
    """Return the body of a request, at most ``limit`` bytes of it.

    Raises:
        Refusal: 413 for a body that is or claims to be larger, 415 for a compressed one, 400 for an incomplete one, 503
            for one that was not read as the caller had no valid key, who now is let in.
    """
    if BODY in scope and scope[BODY] is None:
        raise Refusal(503, "retry", "the model's keys have just changed; send the request again", retry_after_s=1.0)
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in {b"", b"identity"}:
        raise Refusal(415, "unsupported_encoding", "send the body uncompressed")
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise too_large_body(limit)
    if BODY in scope:
        if len(scope[BODY]) > limit:  # of undeclared length, read under another limit
            raise too_large_body(limit)
        return bytes(scope[BODY])
    body, more = Pieces(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refusal(400, "disconnected", "the client disconnected before its request was complete")
        piece, more = message.get("body", b""), message.get("more_body", False)
        if body.size + len(piece) > limit:
            raise too_large_body(limit)
        body.add(piece)
    return b"".join(body.taken())


class Pieces:
    """A body that grows piece by piece.

    One large array would be copied again and again, each time longer than an event loop may take; a list of chunks as
    they come, of two bytes each, would take twenty times the memory.
    """

    def __init__(self) -> None:
        self.size = 0
        self._whole: list[bytes] = []
        self._last = bytearray()

    def add(self, chunk: bytes) -> None:
        """Add what comes next."""
        self.size += len(chunk)
        if len(chunk) < PIECE_BYTES:
            self._last += chunk
            if len(self._last) < PIECE_BYTES:
                return
            chunk = b""
        if self._last:
            self._whole.append(bytes(self._last))
            self._last.clear()
        if chunk:
            self._whole.append(chunk)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._whole
        yield bytes(self._last)

    def taken(self) -> list[bytes]:
        """Return the pieces, which are not kept."""
        whole, last = self._whole, bytes(self._last)
        self._whole, self._last = [], bytearray()
        return [*whole, last] if last or not whole else whole


class BodyReader:
    """Reads the bodies of one replica's requests, as ``read_body``: of large ones, two at a time.

    The guard has them complete by then, and what the Python proxy hands over takes the event loop's time and several
    times its memory. Without the guard a client may be slow, and nobody waits for it.
    """

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(2)

    async def read(self, scope: Scope, receive: Receive, headers: Mapping[bytes, bytes], *, limit: int) -> bytes:
        """Return the body of a request.

        Raises:
            Refusal: as ``read_body``.
        """
        if BODY in scope or ARRIVED not in scope:
            return await read_body(scope, receive, headers, limit=limit)
        async with self._turns:
            return await read_body(scope, receive, headers, limit=limit)


def too_large_body(limit: int) -> Refusal:
    """Return the refusal of a body that is too large, the same wherever it is detected."""
    return Refusal(413, "body_too_large", f"the body has more than {limit} bytes; send fewer rows at a time")
