"""The application at ``/``: its pages, and the hop from the host to each model for clients that know the host alone.

Owns how a request is handed to a model's champion, over HTTP and gRPC, and that no model can block the way to another:
each has a deadline and a share of the requests that may be on their way. Slower than a model's own route by that hop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from raymlops.serving.arrival import ARRIVED, Ages, refuse_late, stamp, with_stamp
from raymlops.serving.asgi import BODY, header_map, read_body, request_id_of
from raymlops.serving.auth import secret_of
from raymlops.serving.index.pages import Index, unknown_model
from raymlops.serving.protocols import grpc as form
from raymlops.serving.refusal import INTERNAL, Limits, Refusal
from raymlops.serving.replica.grpc_front import GrpcReply, refused
from raymlops.serving.replica.grpc_front import header_map as metadata_map
from raymlops.serving.replica.peers import ServePeers
from raymlops.serving.request import HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ray.serve.handle import DeploymentHandle

    from raymlops.serving.asgi import Receive, Reply, Scope
    from raymlops.serving.index.pages import Target

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log

IN_FLIGHT = 80
"""Requests that are handed on at once, over all models: fewer than the index' replica takes, so that it always answers
for itself."""


@dataclass(slots=True)
class _Champion:
    """Where the requests for one model go, and within which bounds."""

    version: int
    limits: Limits
    handle: Callable[[int], DeploymentHandle[Any]]
    in_flight: int = 0


class Gateway:
    """Answer what concerns the host, and hand on what is for one model, from one event loop.

    ``configure`` may be called from any thread meanwhile. ``handles`` gives for a model's name what gives the handle of
    one of its versions.
    """

    def __init__(self, handles: Callable[[str], ServePeers] = ServePeers) -> None:
        self._index = Index(self._forward)
        self._make_peers = handles
        self._peers: dict[str, ServePeers] = {}
        self._champions: dict[str, _Champion] = {}
        self._ages = Ages()

    @property
    def limits(self) -> Limits:
        """Return the largest deadline and the largest body of all models."""
        each = [champion.limits for champion in self._champions.values()] or [Limits()]
        return Limits(
            timeout_s=max(limits.timeout_s for limits in each),
            max_body_bytes=max(limits.max_body_bytes for limits in each),
        )

    def configure(self, models: Sequence[Mapping[str, Any]]) -> None:
        """Take the list of champions, each with its ``timeout_s``, ``max_body_bytes`` and ``access``."""
        self._index.configure(models)
        peers, champions = {}, {}
        for model in models:
            name, version = model["name"], int(model["version"])
            peers[name] = self._peers.get(name) or self._make_peers(name)
            peers[name].keep({version})
            limits = Limits(**{key: model[key] for key in ("timeout_s", "max_body_bytes") if key in model})
            before = self._champions.get(name)
            champion = before or _Champion(version, limits, peers[name].handle)  # which counts those on their way
            champion.version, champion.limits = version, limits
            champions[name] = champion
        self._peers, self._champions = peers, champions

    async def reply(self, scope: Scope, receive: Receive) -> Reply:
        """Return the answer to one HTTP request."""
        return await self._index.answer(scope, receive)

    async def grpc_call(self, method: str, body: bytes, metadata: list[tuple[str, Any]]) -> GrpcReply:
        """Return the answer to one gRPC call; never raises for what a client or the model did."""
        metadata = with_stamp(metadata, stamp())
        headers = metadata_map(metadata, "x-session-id")
        try:
            if method == "ServerMetadata":
                return GrpcReply(form.server_metadata())
            if method in {"ServerLive", "ServerReady"}:
                return GrpcReply(form.ready(method, ready=True))
            name, _ = form.model_of(method, body)
            champion = self._champion(name, headers)
            if method != "ModelReady":
                self._admit(name, headers)
            with self._place(name, champion):
                async with asyncio.timeout(champion.limits.timeout_s):
                    reply: GrpcReply = await _asked(name, champion, "grpc_call", method, body, metadata)
                    return reply
        except Exception as error:
            return refused(_refusal(error), request_id_of(headers.get(b"x-request-id") or headers.get(b"request_id")))

    async def _forward(self, target: Target, scope: Scope, receive: Receive) -> Reply:
        headers = header_map(scope, HEADERS)
        champion = self._champion(target.name, headers)
        inner = target.scope(scope)
        reads = scope["method"] in {"GET", "HEAD"}
        if not (reads and target.asks_ready):
            self._admit(target.name, headers)  # before the body goes further; whoever took it from the client holds it
        plain = {key: inner[key] for key in ("type", "method", "path", "root_path")}
        given = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        arrived = scope.get(ARRIVED) or stamp()
        left_s = champion.limits.timeout_s - self._ages.age_s(arrived)
        try:
            refuse_late(left_s <= 0)
            async with asyncio.timeout(left_s):
                limit = champion.limits.max_body_bytes
                body = b"" if reads else await read_body(scope, receive, headers, limit=limit)
                call = {**plain, "headers": given, BODY: body, ARRIVED: arrived}
                with self._place(target.name, champion):  # not before: a body that does not come would keep it
                    reply: Reply = await _asked(target.name, champion, "http_call", call)
                    return reply
        except TimeoutError as error:
            raise _refusal(error) from error

    def _champion(self, name: str, headers: Mapping[bytes, bytes]) -> _Champion:
        champion = self._champions.get(name)
        if champion is None:
            raise unknown_model(name, self._index.visible(headers))
        return champion

    def _admit(self, name: str, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a caller without a key for this model. What the key may do, and how often, its own front says."""
        guard = self._index.guard(name)
        if guard is not None:
            guard.identify(secret_of(headers))

    @contextlib.contextmanager
    def _place(self, name: str, champion: _Champion) -> Iterator[None]:
        """Hold one of the places that a model has for requests on their way to it."""
        places = max(1, IN_FLIGHT // max(1, len(self._champions)))
        if champion.in_flight >= places:
            raise Refusal(
                503,
                "overloaded",
                f"{champion.in_flight} requests are on their way to {name} by this route; its own takes more",
                retry_after_s=1.0,
            )
        champion.in_flight += 1
        try:
            yield
        finally:
            champion.in_flight -= 1


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TimeoutError):
        return Refusal(504, "timeout", "the model gave no answer within its deadline", retry_after_s=1.0)
    logger.error("the gateway raised", exc_info=error)
    return INTERNAL


async def _asked(name: str, champion: _Champion, method: str, *given: Any) -> Any:
    call = getattr(champion.handle(champion.version), method).remote(*given)
    try:
        return await call
    except asyncio.CancelledError:
        call.cancel()  # the call goes on otherwise, for a client that has left or been told that it is late
        raise
    except (RayError, RayServeException) as error:
        raise Refusal(
            503, "version_unavailable", f"{name} does not answer: {type(error).__name__}", retry_after_s=1.0
        ) from error
