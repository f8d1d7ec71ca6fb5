"""What Serve calls in a replica for a gRPC call."""

from __future__ import annotations

import asyncio

from raymlops.serving.apps import _AsgiResponse, _Callable
from raymlops.serving.arrival import METADATA
from raymlops.serving.asgi import make_reply
from raymlops.serving.proxy.bounds import Bounds, KnownBounds, announcement
from raymlops.serving.replica.grpc_front import GrpcReply


def test_a_client_does_not_say_when_its_call_arrived():
    """That is left out of its metadata; the rest is passed on as it came."""
    given = []

    class Replica(_Callable):
        async def grpc_call(self, method, body, metadata):
            given.append((method, body, metadata))
            return GrpcReply(b"")

    class Context:
        def invocation_metadata(self):
            return (("x-api-key", "k"), (METADATA, "here 0.0"), ("data-bin", b"\xff"))

        def set_trailing_metadata(self, metadata):
            assert metadata == []

    asyncio.run(Replica().ServerLive(b"message", Context()))
    assert given == [("ServerLive", b"message", [("x-api-key", "k"), ("data-bin", b"\xff")])]


def test_bounds_are_announced_so_that_a_proxy_of_an_earlier_release_knows_its_two():
    """It takes a pair of deadline and size; one of this release takes all, and no client sees any."""
    bounds, sent, known = Bounds(30.0, 5, 60, key_required=True), [], KnownBounds()

    async def send(message):
        sent.append(message)

    asyncio.run(_AsgiResponse(make_reply(200, b"{}", "r"), announcement("flights", bounds))({}, None, send))
    assert sent[0]["raymlops.bounds"] == ("flights", (30.0, 5))
    known.take(sent[0])
    assert known.of_model("flights") == bounds
    assert sent[0].keys() == {"type", "status", "headers"}
