"""gRPC front of one model version: the methods of the Open Inference Protocol.

Owns the conversion of a call: bytes of a request in, bytes of a response or a status out, so that a call can be
forwarded between replicas. Knows nothing of gRPC servers or Ray; ``handler`` handles the requests.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymlops.serving.arrival import refuse_late, stamp_in
from raymlops.serving.asgi import too_large_body
from raymlops.serving.protocols import grpc as form
from raymlops.serving.refusal import INTERNAL, Refusal, grpc_code
from raymlops.serving.request import headers_in, request_id_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.serving.replica.http_front import Front
    from raymlops.serving.request import Exchange

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log


@dataclass(frozen=True, slots=True)
class GrpcReply:
    """One response: ``code`` is a gRPC status code, 0 for success."""

    body: bytes
    code: int = 0
    details: str = ""
    metadata: tuple[tuple[str, str], ...] = ()


async def call(front: Front, method: str, body: bytes, metadata: Sequence[tuple[str, str | bytes]]) -> GrpcReply:
    """Return the response to one call; never raises for a client's or the model's error.

    If the index forwarded it, ``metadata`` has its arrival there.
    """
    try:
        return await _call(front, method, body, metadata, age_s=front.ages.age_s(stamp_in(metadata)))
    except Exception:
        request_id = request_id_of(None)
        logger.exception("request %s: the front itself raised", request_id)
        return refused(INTERNAL, request_id)


async def _call(
    front: Front, method: str, body: bytes, metadata: Sequence[tuple[str, str | bytes]], *, age_s: float
) -> GrpcReply:
    handler = front.handler
    exchange = handler.begin(headers_in(metadata))
    left_s = handler.settings.limits.timeout_s - age_s
    work = _dispatch(front, method, body, exchange, late=left_s <= 0)
    handled = await handler.handle(exchange, work, left_s=left_s)
    if isinstance(handled, Refusal):
        metadata = _metadata(exchange)[: 1 if handled.status == 401 else None]  # no version without a key
        return refused(handled, exchange.request_id, metadata=metadata)
    return GrpcReply(handled[1], metadata=_metadata(exchange))


def refused(refusal: Refusal, request_id: str, *, metadata: tuple[tuple[str, str], ...] = ()) -> GrpcReply:
    """Return a refusal in gRPC: the matching status, with our error as its details."""
    if refusal.retry_after_s is not None:
        metadata = (*metadata, ("retry-after", f"{refusal.retry_after_s:.3g}"))
    return GrpcReply(b"", grpc_code(refusal.status), form.details(refusal, request_id), metadata)


def _metadata(exchange: Exchange) -> tuple[tuple[str, str], ...]:
    return ("x-request-id", exchange.request_id), ("x-model-version", str(exchange.version))


async def _dispatch(front: Front, method: str, body: bytes, exchange: Exchange, *, late: bool) -> tuple[int, bytes]:
    handler = front.handler
    name = handler.identity.name
    if method == "ModelInfer":
        exchange.protocol = form.PROTOCOL.name
        refuse_late(late)
        caller = handler.admit(exchange)
        handler.expect(exchange, caller)
        _require_fitting(front, body)
        await handler.take_turn(exchange, large=handler.is_large(body))
        return 200, (await handler.predict(exchange, form.Grpc(name), body, caller=caller)).body
    if method in {"ServerLive", "ServerReady"}:
        return 200, form.ready(method, ready=method == "ServerLive" or (front.ready and not front.stuck))
    if method == "ServerMetadata":
        return 200, form.server_metadata()
    if method in {"ModelReady", "ModelMetadata"}:
        _require_fitting(front, body)
        requested, wanted = form.model_of(body)
        if requested not in {"", name}:
            raise Refusal(404, "not_found", f"no model {requested[:80]!r} here; this is {name}")
        try:
            version = handler.routing.named(wanted or None)
        except Refusal:  # which lists the live versions
            handler.admit(exchange)
            raise
        if method == "ModelMetadata":
            handler.admit(exchange)
        if method == "ModelMetadata":
            return 200, form.model_metadata(await handler.metadata(version, exchange.headers))
        # Another version is live because it came up and is desired. Serve checks the health of its replicas.
        return 200, form.ready(method, ready=version != handler.identity.version or (front.ready and not front.stuck))
    raise Refusal(501, "not_implemented", f"{method[:80]} is not implemented")


def _require_fitting(front: Front, body: bytes) -> None:
    limit = front.handler.settings.limits.max_body_bytes
    if len(body) > limit:
        raise too_large_body(limit)
