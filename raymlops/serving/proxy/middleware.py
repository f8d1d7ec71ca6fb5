"""HTTP middleware in front of Serve: header checks, bounded bodies, deadlines, and our form for Serve's own errors.

Named by ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` when a cluster is started; runs in the Python proxy, or in each
replica behind HAProxy. Owns which headers and paths reach Serve, how a body is passed on, the deadline, and the form of
the errors that Serve returns for a model. Models work without it, more slowly and with Serve's own errors.

It works around these properties of Ray 2.60. Serve decodes every header's name, and some values, as UTF-8 without a
guard (a stray byte is a 500), accepts a client's deadline, and lets it choose among replicas (by the id of a model that
none has, which costs a second). It bounds neither headers nor the time and size of a body, which it buffers while the
request waits for a replica or occupies one. Its own deadline is the same for all applications and fixed at its start.
The Python proxy sends a request without its body, which the replica fetches by two calls back: a small body travels in
the scope instead. And Serve's errors are plain texts, or empty. Two errors keep their form: Serve's 404 before it knows
a route, and those of HAProxy, of which one is a 500 for a replica that died with the request.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.middleware import Middleware

from raymlops.serving.arrival import ARRIVED, stamp
from raymlops.serving.asgi import BODY, COUNTED, JSON, make_reply, refusal_reply, send_reply
from raymlops.serving.auth import KEY_HEADERS
from raymlops.serving.names import GUARD, ROUTES
from raymlops.serving.proxy.bodies import Account, Body, replayed
from raymlops.serving.proxy.bounds import (
    ANNOUNCED,
    KNOWN,
    MODELS,
    UNKNOWN,
    UNKNOWN_BODY_S,
    asked_for,
    name_in,
    scan_of,
)
from raymlops.serving.proxy.connections import MAX_HEADER_BYTES, max_header_bytes, too_large
from raymlops.serving.proxy.disconnect import CLIENT, Client
from raymlops.serving.proxy.serve_patches import patch_serve
from raymlops.serving.refusal import INTERNAL, Refusal
from raymlops.serving.request import FORWARDED_FOR, PIN_HEADER, headers_of, request_id_of
from raymlops.serving.telemetry.metrics import count_refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from raymlops.serving.asgi import Message, Receive, Scope, Send
    from raymlops.serving.proxy.bounds import Bounds, KnownBounds

    App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches its log

MAX_HEADERS = 100
BODY_S = 10.0
"""How long a small body may take to arrive, and how long a larger one, which has its request's deadline, may pause."""
MARGIN_S = 1.0
"""How much later than the model's own deadline the middleware answers for it."""

_MODEL_ID = b"serve%bmultiplexed%bmodel%bid"  # Serve treats - and _ alike in this name
_DROPPED = frozenset(
    {
        *(b"x-request-timeout-seconds", b"x-request-disconnect-disabled"),
        *(_MODEL_ID % separators for separators in itertools.product((b"-", b"_"), repeat=3)),
    }
)
_LEFT_TO_US = [(b"x-request-timeout-seconds", b"0"), (b"x-request-disconnect-disabled", b"?1")]
_CLOSE = ((b"connection", b"close"),)

BUSY = Refusal(
    503, "overloaded", "too many requests are queued for this model, or it has no running replica", retry_after_s=1.0
)
LATE = Refusal(504, "timeout", "no answer within the server's own deadline", retry_after_s=1.0)
NO_WEBSOCKET = Refusal(400, "no_websocket", "websockets are not supported; use HTTP")
LIMIT_UNKNOWN = Refusal(
    503, "retry", "this model's limits are not known here yet, or have just changed; try again", retry_after_s=1.0
)
LOST = Refusal(503, "lost", "the replica that handled this request was lost")


def middlewares() -> list[Middleware]:
    """Return the middlewares for Serve's HTTP server; Serve calls this in each process that has one."""
    patch_serve()
    return [Middleware(ProxyMiddleware, header_bytes=max_header_bytes())]


class ProxyMiddleware:
    """Clean the headers of every request; for a model, read the body, keep the deadline and convert Serve's own errors.

    ``header_bytes`` bounds path and headers, ``body_s`` is how many seconds a small body may take and a larger one may
    pause, ``known`` has the models' bounds and ``account`` the bytes of bodies that this process buffers.
    """

    def __init__(
        self,
        app: App,
        *,
        header_bytes: int = MAX_HEADER_BYTES,
        body_s: float = BODY_S,
        known: KnownBounds = KNOWN,
        account: Account | None = None,
    ) -> None:
        self._app = app
        self._header_bytes = header_bytes
        self._body_s = body_s
        self._known = known
        self._account = account or Account()
        self._behind_haproxy = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request as an ASGI application."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope.pop(CLIENT, None)  # a scope travels to the replica
        arrived = scope.pop(ARRIVED, None) or stamp()
        refusal = self._refusal(scope)
        scope["headers"] = clean_headers(scope["headers"])
        bounds = self._known.of_path(scope["path"])
        if refusal is not None:
            await _refuse(refusal, scope, send)
        elif scope["path"].endswith(GUARD):
            body = json.dumps({"guard": {"max_header_bytes": self._header_bytes}}).encode()
            await send_reply(make_reply(200, body, _request_id(scope)), send)
        elif bounds is None:
            await self._app(scope, receive, _learning(send, self._known))
        else:
            scope[ARRIVED] = arrived
            if scope.get("client") and not self._behind_haproxy:  # which adds it itself
                scope["headers"].append((FORWARDED_FOR, scope["client"][0].encode()))
            await self._to_model(scope, receive, send, client=client or Client(), bounds=bounds)

    async def _to_model(self, scope: Scope, receive: Receive, send: Send, *, client: Client, bounds: Bounds) -> None:
        waited_s = time.monotonic() - scope[ARRIVED][1]  # for its headers, and for the answers to earlier requests
        if waited_s > bounds.timeout_s + MARGIN_S:
            await _refuse(LATE, scope, send)
            return
        arrived = asyncio.get_running_loop().time() - waited_s
        # Both are handled here: Serve's own watch for a client's disconnect costs more than a small answer.
        scope["headers"] += _LEFT_TO_US
        headers = headers_of(scope["headers"])
        until = arrived + bounds.timeout_s + MARGIN_S
        if scope["method"] != "POST" or not self._known.may_send(scope["path"], headers, bounds):
            found = await self._without_body(scope, headers, send, client=client, until=until)
            if found is None:
                return
            bounds = found
        with Body(self._account, headers.get(b"content-length", b""), has_left=client.has_left) as body:
            if not body.small:
                body.scan = scan_of(scope["path"], headers, bounds)
            probed = bounds is UNKNOWN and body.may_exceed(bounds.max_body_bytes)
            if probed:
                bounds = await self._probe_bounds(scope, client)
            until = arrived + bounds.timeout_s + MARGIN_S
            unknown = bounds is UNKNOWN
            seconds = self._body_s if body.small else UNKNOWN_BODY_S if unknown else bounds.timeout_s
            try:
                taken = await body.read(
                    receive,
                    model=None if unknown else name_in(scope["path"]),
                    limit=bounds.max_body_bytes,
                    seconds=seconds,
                    pause_s=self._body_s,
                )
            except Refusal as refusal:
                retry = unknown
                if refusal.status == 413 and not (probed or unknown):
                    # The model may have larger bounds since its last answer.
                    retry = (await self._probe_bounds(scope, client)).allow_more_than(bounds)
                await _refuse(LIMIT_UNKNOWN if retry and refusal.status == 413 else refusal, scope, send)
                return
            if taken is None:
                return
            if body.small:
                scope[BODY] = b"".join(taken)
            else:
                scope[COUNTED] = bounds.max_values is not None
                # Fetched by the replica, once it has checked the key: the Python proxy pickles each fetch on its loop.
                # Alone it is faster as a whole.
                if self._account.large == 1:
                    taken = [b"".join(taken)]
                receive = replayed(taken, receive)
            if await self._model(scope, receive, send, client=client, until=until) and body.small:
                self._account.note_small()

    async def _without_body(
        self, scope: Scope, headers: Mapping[bytes, bytes], send: Send, *, client: Client, until: float
    ) -> Bounds | None:
        """Let a model answer what has no body, or a caller whom it last refused: that one's might never come.

        Returns:
            Its bounds where it lets the caller in by now: the body is wanted, and nothing is answered yet. Else None.
        """
        posts = scope["method"] == "POST"
        held: list[Message] = []

        async def hold(message: Message) -> None:
            held.append(message)

        asking = {**scope, BODY: None if posts else b""}
        taking = hold if posts else send
        await self._model(asking, replayed([b""], _nothing_more), taking, client=client, until=until)
        bounds = self._known.of_path(scope["path"]) or UNKNOWN
        if held and held[0].get("status") == 503 and self._known.may_send(scope["path"], headers, bounds):
            return bounds
        for message in held:
            await send(message)
        return None

    async def _probe_bounds(self, scope: Scope, client: Client) -> Bounds:
        """Return a model's bounds, from its answer to a readiness probe, which needs no key.

        The request's body is not read meanwhile. Without an answer the known bounds stay.
        """
        path = f"{MODELS}{asked_for(scope['path'])}/readyz"
        asking = {**scope, "method": "GET", "path": path, "raw_path": quote(path).encode(), "query_string": b""}
        asking["headers"] = list(_LEFT_TO_US)
        until = asyncio.get_running_loop().time() + self._body_s
        await self._model(asking, replayed([b""], _nothing_more), _nowhere, client=client, until=until)
        return self._known.of_path(scope["path"]) or UNKNOWN

    async def _model(self, scope: Scope, receive: Receive, send: Send, *, client: Client, until: float) -> bool:
        """Forward a request until its deadline or its client's disconnect, either of which cancels it in Serve.

        Returns:
            Whether it was answered without an error.
        """
        answer = _Answer(scope, send, self._known)
        task = asyncio.current_task()
        assert task is not None
        limit = asyncio.timeout_at(until)
        refusal = LOST
        client.watch(task.cancel)
        try:
            async with limit:
                if not client.gone:
                    await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            if not client.gone:
                raise
        except Exception:
            if answer.started:
                raise
            if not limit.expired():
                logger.exception("Serve itself raised at %s", scope["path"])
                refusal = INTERNAL
        finally:
            client.watch(None)
            while client.gone and task.cancelling():
                task.uncancel()
        if not answer.started and not client.gone:
            await answer.refuse(LATE if limit.expired() else refusal)
        return answer.good

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Return the refusal of a request by its raw path and headers, if any."""
        headers = scope["headers"]
        size = sum([len(name) + len(value) for name, value in headers])
        size += len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
        if size > self._header_bytes:
            return too_large(self._header_bytes)
        if len(headers) > MAX_HEADERS:
            return Refusal(431, "headers_too_large", f"got {len(headers)} headers; at most {MAX_HEADERS}")
        path = scope["path"]
        if not path.isprintable() or "\ufffd" in path:  # the replacement for bytes that are not UTF-8
            return Refusal(400, "bad_path", "the path is not printable UTF-8")
        if path == ROUTES:
            return Refusal(404, "not_found", "routes are not listed; GET / lists the models that the caller may see")
        return None

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on websockets of other applications; refuse one that none accepts, which Serve would answer with 500."""
        answered = False

        async def taken(message: Message) -> None:
            nonlocal answered
            if message["type"].startswith("websocket."):  # Serve reports its errors as for a request
                answered = True
                await send(message)

        refusal = self._refusal(scope)
        scope["headers"] = clean_headers(scope["headers"])
        if refusal is None and not scope["path"].startswith(MODELS):
            try:
                await self._app(scope, receive, taken)
            except Exception:
                if answered:
                    raise
                logger.debug("no websocket at %s", scope["path"], exc_info=True)
            if answered:
                return
        reply = refusal_reply(refusal or NO_WEBSOCKET, scope)
        if "websocket.http.response" in scope.get("extensions", {}):
            headers = [*reply.headers, (b"x-request-id", reply.request_id.encode())]
            await send({"type": "websocket.http.response.start", "status": reply.status, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": reply.body})
        else:
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the client sees 403


def clean_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers without those that are not ASCII or that would change Serve's own behaviour.

    ``x-request-id`` is kept if it has 1 to 128 printable characters and replaced otherwise, so that the id in the
    response's header is the one in its body. A key that is not ASCII becomes an invalid key, a pin one to a version
    that does not exist.
    """
    kept = []
    for name, value in headers:
        if name in _DROPPED or not name.isascii():
            continue
        if name == b"x-request-id":
            kept.append((name, request_id_of(value).encode()))
        elif value.isascii():
            kept.append((name, value))
        elif name in KEY_HEADERS:
            kept.append((b"x-api-key", b"?"))
        elif name == PIN_HEADER:
            kept.append((name, value.decode("latin-1").encode("ascii", "replace")))
    return kept


class _Answer:
    """The messages of one response, with Serve's own errors converted to our form."""

    def __init__(self, scope: Scope, send: Send, known: KnownBounds) -> None:
        self.started = self.good = False
        self._known = known
        self._scope = scope
        self._send = send
        self._refusal: Refusal | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.good = True, message["status"] < 400
            self._known.take(message, path=self._scope["path"])
            self._refusal = _serves_own(message)
        if self._refusal is None:
            await self._send(message)
        elif not message.get("more_body", False) and message["type"] == "http.response.body":
            await self.refuse(self._refusal)

    async def refuse(self, refusal: Refusal) -> None:
        count_refusal(refusal)
        await send_reply(refusal_reply(refusal, self._scope), self._send)


async def _nothing_more() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def _nowhere(message: Message) -> None:
    """Discard the response to a probe."""


def _learning(send: Send, known: KnownBounds) -> Send:
    """Return a ``send`` that records the bounds in the index's response."""

    async def noting(message: Message) -> None:
        if ANNOUNCED in message:
            known.take(message)
        await send(message)

    return noting


def _serves_own(start: Message) -> Refusal | None:
    """Return the refusal for an error of Serve's own, None for a model's response: every error of a model is JSON."""
    if start["status"] < 400 or any(name == b"content-type" and kind == JSON for name, kind in start["headers"]):
        return None
    return {503: BUSY, 408: LATE, 499: LATE}.get(start["status"])


def _request_id(scope: Scope) -> str:
    return request_id_of(next((value for name, value in scope["headers"] if name == b"x-request-id"), None))


async def _refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    """Answer with a refusal and close the connection, without reading the rest of the body."""
    count_refusal(refusal)
    await send_reply(refusal_reply(refusal, scope, extra=_CLOSE), send)
