"""Middleware between Serve's HTTP server and its own code, which takes some of a request's headers on trust.

Named by ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` where a cluster is started; runs in the Python proxy, or in each
replica behind HAProxy. Owns what reaches Serve of a request's headers, and the way its body takes. Models work without
it, more slowly and with Serve's own answer to the headers below.

Two things of Ray 2.60 that it works around. Serve decodes every header's name, and some values, as UTF-8 without a
guard (a stray byte is a 500), and takes a client's word for its own deadline. And the Python proxy sends a request
without its body, which the replica fetches by two calls back: a small body goes along in the scope instead.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from starlette.middleware import Middleware

from raymlops.serving.asgi import BODY, request_id_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from raymlops.serving.asgi import Message, Receive, Scope, Send

MODELS = "/models/"
SMALL_BODY_BYTES = 64_000
DRAIN_S = 60.0
"""How long the rest of a refused body may take to come."""
_DROPPED = frozenset({b"x-request-timeout-seconds", b"x-request-disconnect-disabled"})


def middlewares() -> list[Middleware]:
    """Return the middlewares that Serve puts around its HTTP server."""
    return [Middleware(Cleaner)]


class Cleaner:
    """Clean the headers of every request, and send a small body along with a request to a model."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request as an ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = clean_headers(scope["headers"])
        scope["headers"] = headers
        if scope["method"] != "POST" or not scope["path"].startswith(MODELS):
            await self._app(scope, receive, send)
        elif _is_small(headers):
            body = await _read(receive)
            if body is None:
                return
            scope[BODY] = body
            # With its body in hand a model answers in milliseconds: watching for a client that leaves costs more than
            # finishing its request.
            headers.append((b"x-request-disconnect-disabled", b"?1"))
            await self._app(scope, receive, send)
        else:
            await self._answer_after_body(scope, receive, send)

    async def _answer_after_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold the answer back until the body has come, unread as the rest of it may be.

        A body that is refused for its size is answered at once. If the client is still sending then, and has asked for
        the connection to be closed, closing it would reset it, and the client would see that and no answer.
        """
        held: list[Message] = []
        complete = False

        async def counted() -> Message:
            nonlocal complete
            message = await receive()
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def hold(message: Message) -> None:
            held.append(message)

        await self._app(scope, counted, hold)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not complete:
                    await counted()
        for message in held:
            await send(message)


def clean_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers without those that are not ASCII or that would change Serve's own behaviour.

    ``x-request-id`` is kept when it is 1 to 128 printable characters and replaced otherwise, so that the id in the
    response's header is the one in its body.
    """
    kept = []
    for name, value in headers:
        if name in _DROPPED or not name.isascii():
            continue
        if name == b"x-request-id":
            kept.append((name, request_id_of(value).encode()))
        elif value.isascii():
            kept.append((name, value))
    return kept


def _is_small(headers: list[tuple[bytes, bytes]]) -> bool:
    length = next((value for name, value in headers if name == b"content-length"), b"")
    return length.isdigit() and len(length) < 10 and int(length) <= SMALL_BODY_BYTES


async def _read(receive: Receive) -> bytes | None:
    """Return the body, None when the client left before it was complete."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)
