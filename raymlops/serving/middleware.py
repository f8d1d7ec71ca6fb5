"""Middleware between a client and Serve, which takes some of a request on trust and answers some of them by itself.

Named by ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` where a cluster is started; runs in the Python proxy, or in each
replica behind HAProxy. Owns what reaches Serve of a request's headers and path, the way its body takes, and the form of
what Serve answers for a model by itself. Models work without it, more slowly and with Serve's own answers.

What of Ray 2.60 it works around: Serve decodes every header's name, and some values, as UTF-8 without a guard (a stray
byte is a 500), takes a client's word for its own deadline and lets it choose among replicas (by the id of a model that
none has, which costs a second). It has no bound for headers, and none for the time of a body. The Python proxy sends a
request without its body, which the replica fetches by two calls back: a small body goes along in the scope instead. And
Serve refuses in texts of its own, or says nothing at all. Two answers keep their form: Serve's 404 while it knows no
route, and what HAProxy says by itself, of which one is a 500 for a replica that died with the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import TYPE_CHECKING

from starlette.middleware import Middleware

from raymlops.serving.asgi import BODY, JSON, make_reply, request_id_of, send_reply
from raymlops.serving.connections import MAX_HEADER_BYTES, max_header_bytes, too_large
from raymlops.serving.exchange import PIN_HEADER
from raymlops.serving.mended import mend_serve
from raymlops.serving.reading import INTERNAL, Refusal, error_body, refusal_headers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from raymlops.serving.asgi import Message, Receive, Reply, Scope, Send

    App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches its log

MODELS = "/models/"
SMALL_BODY_BYTES = 64_000
MAX_HEADERS = 100
BODY_S = 10.0
"""How long a small body may take to come. A larger one has the deadline of its request."""
DRAIN_S = 60.0
"""How long the rest of a refused body may take to come."""

_MODEL_ID = b"serve%bmultiplexed%bmodel%bid"  # Serve takes - and _ for one another in this name
_DROPPED = frozenset(
    {
        *(b"x-request-timeout-seconds", b"x-request-disconnect-disabled"),
        *(_MODEL_ID % separators for separators in itertools.product((b"-", b"_"), repeat=3)),
    }
)
_KEYS = frozenset({b"authorization", b"x-api-key"})
_CLOSE = ((b"connection", b"close"),)

BUSY = Refusal(503, "overloaded", "too many requests wait for this model, or no replica of it is up", retry_after_s=1.0)
LATE = Refusal(504, "timeout", "no answer within the server's own deadline", retry_after_s=1.0)
LOST = Refusal(503, "lost", "no answer came from the replica that had this request")


def middlewares() -> list[Middleware]:
    """Return the middlewares that Serve puts around its HTTP server, which it asks for in each process that has one."""
    mend_serve()
    return [Middleware(Cleaner, header_bytes=max_header_bytes())]


class Cleaner:
    """Clean the headers of every request; to a model, send a small body along and mend Serve's own answers.

    ``header_bytes`` bounds path and headers, ``body_s`` is how many seconds a small body may take.
    """

    def __init__(
        self,
        app: App,
        *,
        header_bytes: int = MAX_HEADER_BYTES,
        body_s: float = BODY_S,
    ) -> None:
        self._app = app
        self._header_bytes = header_bytes
        self._body_s = body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request as an ASGI application."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        headers = clean_headers(scope["headers"])
        refusal = self._refusal(scope)
        scope["headers"] = headers
        if refusal is not None:
            await self._answer_after_body(_refusing(refusal, scope), scope, receive, send)
        elif not scope["path"].startswith(MODELS):
            await self._app(scope, receive, send)
        elif scope["method"] != "POST":
            await self._model(scope, receive, send)
        elif _is_small(headers):
            await self._with_body(scope, receive, send)
        else:
            await self._answer_after_body(self._model, scope, receive, send)

    async def _model(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(scope, send)
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            if answer.started:
                raise
            logger.exception("Serve itself raised at %s", scope["path"])
            await answer.refuse(INTERNAL)
            return
        if not answer.started:
            await answer.refuse(LOST)

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Return why a request goes no further, from its path and its headers as they came."""
        headers = scope["headers"]
        size = sum([len(name) + len(value) for name, value in headers])
        size += len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
        if size > self._header_bytes:
            return too_large(self._header_bytes)
        if len(headers) > MAX_HEADERS:
            return Refusal(431, "headers_too_large", f"got {len(headers)} headers; at most {MAX_HEADERS}")
        path = scope["path"]
        if not path.isprintable() or "\ufffd" in path:  # which is what stands for bytes that are not UTF-8
            return Refusal(400, "bad_path", "the path has bytes that are no printable UTF-8")
        return None

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let others' websockets through, and refuse one to a model, which has none: Serve would answer it with 500."""
        if scope["type"] == "websocket":
            refusal = self._refusal(scope)
            scope["headers"] = clean_headers(scope["headers"])
            if refusal is not None or scope["path"].startswith(MODELS):
                await receive()
                await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the client sees 403
                return
        await self._app(scope, receive, send)

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._body_s):
                body = await _read(receive)
        except TimeoutError:
            late = Refusal(408, "slow_body", f"the body was not complete within {self._body_s:g} s")
            await _refusing(late, scope)(scope, receive, send)
            return
        if body is None:
            return
        scope[BODY] = body
        # With its body in hand a model answers in milliseconds: watching for a client that leaves costs more than
        # finishing its request.
        scope["headers"].append((b"x-request-disconnect-disabled", b"?1"))
        await self._model(scope, receive, send)

    async def _answer_after_body(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
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

        await app(scope, counted, hold)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not complete:
                    await counted()
        for message in held:
            await send(message)


def clean_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers without those that are not ASCII or that would change Serve's own behaviour.

    ``x-request-id`` is kept when it is 1 to 128 printable characters and replaced otherwise, so that the id in the
    response's header is the one in its body. A key that is not ASCII stays a key, which is wrong, and a pin a pin to a
    version that is not there.
    """
    kept = []
    for name, value in headers:
        if name in _DROPPED or not name.isascii():
            continue
        if name == b"x-request-id":
            kept.append((name, request_id_of(value).encode()))
        elif value.isascii():
            kept.append((name, value))
        elif name in _KEYS:
            kept.append((b"x-api-key", b"?"))
        elif name == PIN_HEADER:
            kept.append((name, value.decode("latin-1").encode("ascii", "replace")))
    return kept


class _Answer:
    """The messages of one answer on their way out, with Serve's own refusals put into the one form of an error."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.started = False
        self._scope = scope
        self._send = send
        self._refusal: Refusal | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._refusal = _serves_own(message)
        if self._refusal is None:
            await self._send(message)
        elif not message.get("more_body", False) and message["type"] == "http.response.body":
            await self.refuse(self._refusal)

    async def refuse(self, refusal: Refusal) -> None:
        await send_reply(_reply(refusal, self._scope, extra=refusal_headers(refusal)), self._send)


def _serves_own(start: Message) -> Refusal | None:
    """Return what Serve means by an answer of its own, None for a model's: every refusal of a model is JSON."""
    if start["status"] < 400 or any(name == b"content-type" and kind == JSON for name, kind in start["headers"]):
        return None
    return {503: BUSY, 408: LATE}.get(start["status"])


def _refusing(refusal: Refusal, scope: Scope) -> App:
    """Return an application that answers with a refusal, after which the connection is closed."""
    reply = _reply(refusal, scope, extra=_CLOSE)

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send_reply(reply, send)

    return app


def _reply(refusal: Refusal, scope: Scope, *, extra: tuple[tuple[bytes, bytes], ...]) -> Reply:
    request_id = request_id_of(next((value for name, value in scope["headers"] if name == b"x-request-id"), None))
    return make_reply(refusal.status, error_body(refusal, request_id, path=scope["path"]), request_id, extra=extra)


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
