"""What is replaced in Serve, shown on Serve's own functions."""

from __future__ import annotations

import asyncio
import os

import pytest
from ray.serve._private import default_impl, grpc_util, http_util
from ray.serve._private.proxy import HTTPProxy
from ray.serve.config import gRPCOptions
from uvicorn import Config

from raymlops.cluster.ports import free_port, listeners
from raymlops.serving.proxy.connections import Connection
from raymlops.serving.proxy.serve_patches import address_of, bind_grpc_to, bound_reading_ahead, drop_slow_headers


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Put back what the test replaces."""
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)
    for name in ("__call__", "get_messages_nowait"):
        monkeypatch.setattr(http_util.MessageQueue, name, getattr(http_util.MessageQueue, name))
    monkeypatch.setattr("uvicorn.config.HTTP_PROTOCOLS", {"auto": "uvicorn.protocols.http.auto:AutoHTTPProtocol"})


@pytest.mark.parametrize(
    ("asked", "host", "bound"),
    [
        ("[::]:9000", "127.0.0.1", "127.0.0.1:9000"),
        ("[::]:9000", "::1", "[::1]:9000"),
        ("[::]:9000", "localhost", "localhost:9000"),
        ("[::]:9000", "0.0.0.0", "[::]:9000"),
        ("[::]:9000", None, "[::]:9000"),
        ("unix:/tmp/s", "127.0.0.1", "unix:/tmp/s"),
    ],
)
def test_grpc_goes_where_http_is(asked, host, bound):
    """All interfaces only where HTTP has them too; an address of another kind is Serve's own affair."""
    assert address_of(asked, lambda: host) == bound


def test_serves_own_server_listens_on_loopback_alone():
    """Twice replaced is once replaced."""
    asked = []

    def host():
        asked.append("host")
        return "127.0.0.1"

    bind_grpc_to(host)
    bind_grpc_to(host)
    port = free_port()

    async def serve():
        options = gRPCOptions(port=port, enable_reflection=False)

        async def handler(*_):
            return b""

        _, server = await grpc_util.start_grpc_server(
            lambda **_: handler, options, event_loop=asyncio.get_running_loop()
        )
        try:
            return [item.loopback for item in listeners({os.getpid()}) if item.port == port]
        finally:
            await server.stop(0)

    assert asyncio.run(serve()) == [True]
    assert asked == ["host"]


def test_uvicorn_takes_our_connection():
    """As Serve asks for it: by naming none."""
    drop_slow_headers()
    config = Config(lambda: None, lifespan="off", log_config=None)
    config.load()
    assert config.http_protocol_class is Connection


def test_serves_proxy_reads_a_body_no_further_ahead_than_it_may():
    """Its own task, with nobody who reads: ten pieces of 1,000 bytes fit beside their messages, then the client waits.

    A replica that takes them lets it go on; the end of the body and the client's leaving come through.
    """
    bound_reading_ahead(10 * 1_512)
    bound_reading_ahead(1)  # once is enough
    left = [{"type": "http.request", "body": bytes(1_000), "more_body": more} for more in [True] * 24 + [False]]
    left.append({"type": "http.disconnect"})

    async def receive():
        await asyncio.sleep(0)
        return left.pop(0)

    async def scenario():
        queue = http_util.MessageQueue()
        task = asyncio.create_task(HTTPProxy.proxy_asgi_receive(None, receive, queue))
        taken = []
        while not task.done():
            for _ in range(100):
                await asyncio.sleep(0)
            await queue.wait_for_message()
            taken.append(queue.get_messages_nowait())
        await task
        return taken

    first, second, third = asyncio.run(scenario())
    assert [len(first), len(second), len(third)] == [11, 11, 4]
    assert third[-1]["type"] == "http.disconnect"
