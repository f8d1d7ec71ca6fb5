"""What is replaced in Serve, shown on Serve's own functions."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import pytest
from certificates import certificate
from ray.serve._private import default_impl, grpc_util, http_util
from ray.serve._private.proxy import HTTPProxy
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions
from uvicorn import Config, config

from raymlops.cluster.endpoint.tls import speaks_tls
from raymlops.cluster.ports import free_port, listeners
from raymlops.serving.proxy import serve_patches
from raymlops.serving.proxy.connections import Connection
from raymlops.serving.proxy.middleware import middlewares
from raymlops.serving.proxy.serve_patches import (
    address_of,
    bind_grpc_as,
    bound_reading_ahead,
    drop_slow_headers,
    restrict_ciphers,
)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Put back what the test replaces."""
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)
    for name in ("__call__", "get_messages_nowait"):
        monkeypatch.setattr(http_util.MessageQueue, name, getattr(http_util.MessageQueue, name))
    monkeypatch.setattr(grpc_util, "DEFAULT_GRPC_SERVER_OPTIONS", grpc_util.DEFAULT_GRPC_SERVER_OPTIONS)
    name = "_override_method_handler"
    monkeypatch.setattr(grpc_util.gRPCGenericServer, name, getattr(grpc_util.gRPCGenericServer, name))
    monkeypatch.setattr(config, "create_ssl_context", config.create_ssl_context)
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
    assert address_of(asked, host) == bound


@pytest.mark.parametrize("tls", [False, True])
def test_serves_own_server_listens_on_loopback_alone(tmp_path, tls):
    """With the certificate of HTTP, if that has one. Twice replaced is once replaced."""
    asked = []
    files = dict(zip(("ssl_certfile", "ssl_keyfile"), map(str, certificate(tmp_path)), strict=True)) if tls else {}

    def options():
        asked.append("options")
        return HTTPOptions(host="127.0.0.1", **files)

    bind_grpc_as(options)
    bind_grpc_as(options)
    port = free_port()

    async def serve():
        options = gRPCOptions(port=port, enable_reflection=False)

        async def handler(*_):
            return b""

        _, server = await grpc_util.start_grpc_server(
            lambda **_: handler, options, event_loop=asyncio.get_running_loop()
        )
        try:
            bound = [item.loopback for item in listeners({os.getpid()}) if item.port == port]
            return bound, await asyncio.to_thread(speaks_tls, "127.0.0.1", port)
        finally:
            await server.stop(0)

    assert asyncio.run(serve()) == ([True], tls)
    assert asked == ["options"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (("1", "/c", "SERVE_PROXY_ACTOR-fallback-0a", "HeadOnly"), True),
        (("1", "/c", "SERVE_PROXY_ACTOR-fallback-0a", "EveryNode"), False),
        (("1", "/c", "SERVE_REPLICA::m--v1#front#0", "HeadOnly"), False),
        (("1", "", "SERVE_PROXY_ACTOR-fallback-0a", "HeadOnly"), False),
        (("0", "/c", "SERVE_PROXY_ACTOR-0a", "HeadOnly"), False),
    ],
)
def test_behind_haproxy_with_tls_the_fallback_proxy_is_on_loopback(monkeypatch, where, expected):
    """Both of its ports, where the endpoint has every address and no other node asks it; others stay as they are."""
    monkeypatch.setattr(http_util, "socket", http_util.socket)
    enabled, cert, actor, location = where
    answers = {"get_http_config": HTTPOptions(host="0.0.0.0"), "get_proxy_location": ProxyLocation(location)}
    monkeypatch.setattr(serve_patches, "controller", answers.get)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_actor_name=lambda: actor))
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", enabled)
    monkeypatch.setenv("RAYMLOPS_TLS_CERT", cert)
    serve_patches.patch_serve()
    serve_patches.patch_serve()
    ports = [free_port(), free_port()]

    async def serve():
        loop = asyncio.get_running_loop()
        options = HTTPOptions(host="0.0.0.0", port=ports[0], middlewares=[])
        task, web = await http_util.start_asgi_http_server(lambda: None, options, event_loop=loop)
        options = gRPCOptions(port=ports[1], enable_reflection=False)
        _, server = await grpc_util.start_grpc_server(lambda **_: None, options, event_loop=loop)
        while not web.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0)
        found = [item.loopback for item in listeners({os.getpid()}) if item.port in ports]
        await server.stop(0)
        web.should_exit = True
        await task
        return found

    assert asyncio.run(serve()) == [expected, expected]


def test_the_python_proxy_offers_no_cipher_of_old(tmp_path):
    """uvicorn's own choice for TLS 1.2 is what TLS 1.0 had."""
    cert, key = map(str, certificate(tmp_path))
    restrict_ciphers()
    restrict_ciphers()
    made = Config(lambda: None, ssl_certfile=cert, ssl_keyfile=key)
    made.load()
    names = {cipher["name"] for cipher in made.ssl.get_ciphers() if cipher["protocol"] == "TLSv1.2"}
    assert names
    assert all(name.startswith("ECDHE-") and ("GCM" in name or "CHACHA20" in name) for name in names)


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


def test_serves_server_gets_that_bound_with_its_middlewares():
    """Where Serve asks for them: a body waits behind its first MiB for whoever reads it."""
    middlewares()

    async def scenario():
        queue = http_util.MessageQueue()
        ahead = asyncio.create_task(queue({"type": "http.request", "body": bytes(1024 * 1024)}))
        await asyncio.sleep(0)
        assert not ahead.done()
        queue.get_messages_nowait()
        await ahead

    asyncio.run(scenario())


def test_a_replica_looks_up_the_proxy_once_it_fetches_a_body(monkeypatch):
    """Not for a request whose body came with it; where there is no proxy, for the fetch alone it is looked up."""
    from ray.serve._private import common

    kept = common.StreamingHTTPRequest.receive_asgi_messages
    monkeypatch.setattr(common.StreamingHTTPRequest, "receive_asgi_messages", kept)
    looked_up = []

    def get_actor(name, **_kwargs):
        looked_up.append(name)
        return SimpleNamespace(receive_asgi_messages=SimpleNamespace(remote=lambda metadata: f"body of {metadata}"))

    monkeypatch.setattr(common.ray, "get_actor", get_actor)
    serve_patches.look_up_proxies_late()
    serve_patches.look_up_proxies_late()
    request = common.StreamingHTTPRequest({}, proxy_actor_name="proxy")
    fetch = request.receive_asgi_messages
    assert looked_up == []
    assert [fetch("one"), fetch("two")] == ["body of one", "body of two"]
    assert looked_up == ["proxy"]
