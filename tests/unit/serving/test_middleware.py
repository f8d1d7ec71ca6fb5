from __future__ import annotations

import asyncio

import pytest

from raymlops.serving.asgi import BODY
from raymlops.serving.middleware import Cleaner, clean_headers


def pass_through(*, method="POST", path="/models/flights/predict", headers=(), messages=()):
    """Return the scope that arrives behind the guard, None where nothing does."""
    seen = []
    left = [*messages, {"type": "http.disconnect"}]

    async def app(scope, receive, send):
        seen.append(scope)

    async def receive():
        return left.pop(0)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(Cleaner(app)(scope, receive, None))
    return seen[0] if seen else None


def test_headers_that_serve_would_choke_on_are_dropped():
    """Not ASCII in a name or a value, or an order to Serve: none of them arrives."""
    headers = [
        (b"accept", b"*/*"),
        (b"x-caf\xc3\xa9", b"1"),
        (b"cookie", b"\xff"),
        (b"x-request-timeout-seconds", b"0"),
    ]
    assert clean_headers(headers) == [(b"accept", b"*/*")]


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"\xff", b"a\x01b"])
def test_a_strange_request_id_is_replaced(given):
    """Serve repeats the id in the response's header, so it is made sane before."""
    ((_, value),) = clean_headers([(b"x-request-id", given)])
    assert len(value) == 36


def test_a_sane_request_id_is_kept():
    """A client's own id goes all the way through."""
    assert clean_headers([(b"x-request-id", b"order 4711")]) == [(b"x-request-id", b"order 4711")]


def test_a_small_body_goes_along():
    """Both chunks are in the scope, and Serve need not watch for the client."""
    scope = pass_through(
        headers=[(b"content-length", b"4")],
        messages=[
            {"type": "http.request", "body": b"ab", "more_body": True},
            {"type": "http.request", "body": b"cd", "more_body": False},
        ],
    )
    assert scope[BODY] == b"abcd"
    assert (b"x-request-disconnect-disabled", b"?1") in scope["headers"]


@pytest.mark.parametrize(
    "request_",
    [
        {"headers": [(b"content-length", b"64001")]},
        {"headers": []},
        {"headers": [(b"content-length", b"4")], "path": "/other"},
        {"headers": [(b"content-length", b"4")], "method": "GET"},
    ],
)
def test_another_request_is_left_to_stream(request_):
    """A large body, one of unknown length, and other applications' requests are not touched."""
    assert BODY not in pass_through(**request_)


def test_a_client_that_leaves_half_way_goes_no_further():
    """Half a body is nobody's request."""
    messages = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]
    assert pass_through(headers=[(b"content-length", b"4")], messages=messages) is None


def test_a_refused_body_is_taken_before_the_answer():
    """The application answers after the first chunk; the client hears of it once it has sent the last."""
    order = []
    left = [{"type": "http.request", "body": b"x", "more_body": more} for more in (True, True, False)]

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 413, "headers": []})

    async def receive():
        order.append("chunk")
        return left.pop(0)

    async def send(message):
        order.append(message["status"])

    scope = {"type": "http", "method": "POST", "path": "/models/flights/predict", "headers": []}
    asyncio.run(Cleaner(app)(scope, receive, send))
    assert order == ["chunk", "chunk", "chunk", 413]
