"""What Serve calls in a replica for a gRPC call."""

from __future__ import annotations

import asyncio

import cloudpickle

from raymlops.serving.apps import IndexReplica, _AsgiResponse, _Callable
from raymlops.serving.arrival import METADATA
from raymlops.serving.asgi import make_reply
from raymlops.serving.proxy import bounds as known_bounds
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


def test_the_guard_of_a_process_knows_the_keys_of_its_replica(monkeypatch):
    """Serve sends the replica's class by value, to a process whose guard was imported."""
    monkeypatch.setattr(known_bounds, "KNOWN", KnownBounds())
    sent = cloudpickle.dumps(IndexReplica.func_or_class)
    replica = cloudpickle.loads(sent)()
    limits = {"timeout_s": 1.0, "max_body_bytes": 9_000_000}
    model = {"name": "m", "version": 1, "digest": "d", "path": "/models/m", "access": {"required": True}, **limits}
    asyncio.run(replica.reconfigure({"models": [model]}))
    assert len(list(known_bounds.KNOWN.guards())) == 1
    assert known_bounds.KNOWN.guard_of("m") is not None
    assert known_bounds.KNOWN.most_message_bytes == 9_000_000
