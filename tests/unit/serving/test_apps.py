"""What Serve calls in a replica for a gRPC call."""

from __future__ import annotations

import asyncio

from raymlops.serving.apps import _Callable
from raymlops.serving.arrival import METADATA
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
