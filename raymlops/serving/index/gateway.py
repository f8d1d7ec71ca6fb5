"""Gateway of the application at ``/``: forwards host-level requests to each model's champion, over HTTP and gRPC.

Owns the forwarding, and that no model can block another: each has a deadline and a share of the requests in flight.
Slower than a model's own route by one hop.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.serving.arrival import ARRIVED, Ages, refuse_late, stamp, with_stamp
from raymlops.serving.asgi import BODY, COUNTED, BodyReader, refusal_reply, too_large_body
from raymlops.serving.auth import secret_of
from raymlops.serving.index.pages import Index, model_away, model_of, path_of
from raymlops.serving.json_scan import PIECE_BYTES, UNCOUNTED_BYTES
from raymlops.serving.names import route_of
from raymlops.serving.places import Places
from raymlops.serving.protocols import grpc as form
from raymlops.serving.proxy.bounds import KNOWN, MAX_VALUES, Bounds, scan_of
from raymlops.serving.refusal import INTERNAL, Limits, Refusal
from raymlops.serving.replica.grpc_front import GrpcReply, refused
from raymlops.serving.replica.peers import LARGE_BYTES, ServePeers
from raymlops.serving.request import headers_in, headers_of, request_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.serving.asgi import Receive, Reply, Scope
    from raymlops.serving.proxy.bounds import KnownBounds

LEARNED_S = 10.0
"""How long a bound holds that a model announced."""

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log


@dataclass(slots=True)
class _Champion:
    """The champion of one model, with its limits."""

    peers: ServePeers
    version: int = 0
    away: bool = False
    limits: Limits = field(default_factory=Limits)

    async def call(self, method: str, *given: Any, size: int) -> Any:
        """Call a method of the champion's replicas, as ``ServePeers.call``."""
        return await self.peers.call(self.version, method, *given, size=size)


class Gateway:
    """Answer host-level requests, and forward those for one model, from one event loop.

    ``configure`` may be called from any thread meanwhile. ``peers`` returns the versions of a model by its name.
    """

    def __init__(
        self,
        peers: Callable[[str], ServePeers] = ServePeers,
        *,
        known: KnownBounds = KNOWN,
        later: Callable[..., object] | None = None,
    ) -> None:
        self._later = later
        self._index = Index()
        self.guard, self.guards = self._index.guard, self._index.guards
        self._known = known
        self._make_peers = peers
        self._champions: dict[str, _Champion] = {}
        self._ages = Ages()
        self._bodies = BodyReader()
        self._places = Places()

    @property
    def limits(self) -> Limits:
        """Return the largest deadline and the largest body of all models."""
        each = [champion.limits for champion in self._champions.values()] or [Limits()]
        return Limits(
            timeout_s=max(limits.timeout_s for limits in each),
            max_body_bytes=max(limits.max_body_bytes for limits in each),
        )

    @property
    def bounds(self) -> Bounds:
        """Return the bounds of requests to any model: they need a key where all models require one."""
        own = Bounds.of(self.limits, key_required=self._index.requires_key)
        return own._replace(max_values=None)  # the models' own, which it learns

    def configure(self, models: Sequence[Mapping[str, Any]]) -> None:
        """Apply the list of champions, each with its ``timeout_s``, ``max_body_bytes`` and ``access``."""
        self._index.configure(models)
        champions = {}
        for model in models:
            name = model["name"]
            champion = self._champions.get(name) or _Champion(self._make_peers(name))
            champion.version, champion.away = int(model["version"]), bool(model.get("away"))
            champion.limits = Limits(**{key: model[key] for key in ("timeout_s", "max_body_bytes") if key in model})
            champion.peers.keep({champion.version})
            champions[name] = champion
        self._champions = champions

    async def reply(self, scope: Scope, receive: Receive) -> Reply:
        """Return the answer to one HTTP request, from the model if it is for one."""
        try:
            name = model_of(path_of(scope))
            reply = self._index.reply(scope) if name is None else await self._forward(name, scope, receive)
        except Exception as error:
            reply = refusal_reply(_refusal(error, of=path_of(scope)), scope)
        return replace(reply, body=b"") if scope["method"] == "HEAD" else reply

    async def grpc_call(self, method: str, body: bytes, metadata: list[tuple[str, Any]]) -> GrpcReply:
        """Return the answer to one gRPC call; never raises for what a client or the model did."""
        metadata = with_stamp(metadata, stamp())
        headers = headers_of(headers_in(metadata))
        try:
            if method == "ServerMetadata":
                return GrpcReply(form.server_metadata())
            if method in {"ServerLive", "ServerReady"}:
                return GrpcReply(form.ready(method, ready=True))
            _require_fitting(body, self.limits)  # before its model is known, which takes to read it
            name, _ = form.model_of(body)
            champion = self._champion(name, headers)
            _require_fitting(body, champion.limits)
            with self._places.hold(name):
                async with asyncio.timeout(champion.limits.timeout_s):
                    reply: GrpcReply = await champion.call("grpc_call", method, body, metadata, size=len(body))
                    return reply
        except Exception as error:
            request_id = request_id_of(headers.get(b"x-request-id"))
            return refused(_refusal(error, of=f"{method}, request {request_id}"), request_id)

    async def _forward(self, name: str, scope: Scope, receive: Receive) -> Reply:
        headers = headers_of(scope["headers"])
        champion = self._champion(name, headers)  # before the body is read from the process that accepted it
        path, route = path_of(scope), route_of(name)
        posts = scope["method"] == "POST"
        given = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        call = {"type": "http", "method": scope["method"], "path": route + path, "root_path": route, "headers": given}
        arrived = scope.get(ARRIVED) or stamp()
        left_s = champion.limits.timeout_s - self._ages.age_s(arrived)
        refuse_late(left_s <= 0)
        async with asyncio.timeout(left_s):
            limit = champion.limits.max_body_bytes
            body = await self._bodies.read(scope, receive, headers, limit=limit) if posts else b""
            with self._places.hold(name):  # not earlier: a body that never arrives would hold it
                if len(body) > UNCOUNTED_BYTES and not scope.get(COUNTED):
                    await self._count(name, champion, path, headers, body)
                # As an array it is not copied where it is pickled; the model's front makes it bytes again.
                kept = np.frombuffer(body, np.uint8) if len(body) > LARGE_BYTES else body
                message = {**call, BODY: kept, ARRIVED: arrived}
                reply: Reply = await champion.call("http_call", message, size=len(body))
                return self._without_announcement(name, reply)

    async def _count(
        self, name: str, champion: _Champion, path: str, headers: Mapping[bytes, bytes], body: bytes
    ) -> None:
        """Refuse a body with too many values that the guard let pass since it did not know the model's bound.

        The model is asked for it: what it would refuse costs its own event loop ten milliseconds to take.
        """
        if self._known.of_model(name) is None:
            route = route_of(name)
            probe = {"type": "http", "method": "GET", "path": f"{route}/readyz", "root_path": route, "headers": []}
            self._without_announcement(name, await champion.call("http_call", {**probe, BODY: b""}, size=0))
            self._learn(name, None)  # unless it announced one
        bounds = self._known.of_model(name)
        scan = None if bounds is None else scan_of(path, headers, bounds)
        if scan is not None:
            for start in range(0, len(body), PIECE_BYTES):
                scan.add(body[start : start + PIECE_BYTES])
                await asyncio.sleep(0)

    def _without_announcement(self, name: str, reply: Reply) -> Reply:
        """Record what a model announces, for the guard of this process, and remove it from the reply."""
        most = next((int(value) for header, value in reply.headers if header == MAX_VALUES), None)
        if most is None:
            return reply
        self._learn(name, most)
        return replace(reply, headers=tuple(each for each in reply.headers if each[0] != MAX_VALUES))

    def _learn(self, name: str, most: int | None) -> None:
        if self._known.of_model(name) is None:
            self._known.record(name, Bounds.of(self.limits)._replace(max_values=most))
            # Whoever is refused by it does not reach the model, which may have a larger one by then.
            (self._later or asyncio.get_running_loop().call_later)(LEARNED_S, self._known.forget, name)

    def _champion(self, name: str, headers: Mapping[bytes, bytes]) -> _Champion:
        """Return a model's champion, if the caller has a key for it. Its own front checks scope and rate."""
        champion = self._champions.get(name)
        if champion is None:
            raise self._index.unknown_model(name, headers)
        if (guard := self._index.guard(name)) is not None:
            guard.identify(secret_of(headers))
        if champion.away:
            raise model_away(name)
        return champion


def _require_fitting(body: bytes, limits: Limits) -> None:
    """Refuse a message with 413 that is larger than a model accepts."""
    if len(body) > limits.max_body_bytes:
        raise too_large_body(limits.max_body_bytes)


def _refusal(error: Exception, *, of: str) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TimeoutError):
        return Refusal(504, "timeout", "the model did not answer within its deadline", retry_after_s=1.0)
    logger.error("%s: the gateway raised", of, exc_info=error)
    return INTERNAL
