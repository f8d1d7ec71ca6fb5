from __future__ import annotations

import asyncio
import json

import pytest

from raymlops.serving.asgi import BODY
from raymlops.serving.middleware import MAX_HEADERS, Cleaner, clean_headers


def pass_through(*, method="POST", path="/models/flights/predict", headers=(), messages=()):
    """Return the scope that arrives behind the guard, None where nothing does."""
    seen = []
    left = [*messages, {"type": "http.disconnect"}]

    async def app(scope, receive, send):
        seen.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return left.pop(0)

    async def send(message):
        pass

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(Cleaner(app)(scope, receive, send))
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


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (503, b"text/plain; charset=utf-8", (503, "overloaded")),
        (503, b"", (503, "overloaded")),
        (408, b"text/plain; charset=utf-8", (504, "timeout")),
        (None, b"", (503, "lost")),
        (ArithmeticError, b"", (500, "internal")),
        (503, b"application/json", (503, "the model's")),
        (200, b"text/plain", (200, "the model's")),
    ],
)
@pytest.mark.parametrize("length", [[], [(b"content-length", b"0")]])
def test_what_serve_itself_answers_has_the_one_form(status, kind, expected, length):
    """Its texts under load, and its silence where a replica ended; an answer of the model's stays what it is."""
    sent = []

    async def app(scope, receive, send):
        await receive()
        if status is ArithmeticError:
            raise status
        if status is not None:
            await send({"type": "http.response.start", "status": status, "headers": [[b"content-type", kind]]})
            await send({"type": "http.response.body", "body": b'{"error": {"code": "the ', "more_body": True})
            await send({"type": "http.response.body", "body": b"model's\"}}"})

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [(b"x-request-id", b"mine"), *length]
    scope = {"type": "http", "method": "POST", "path": "/models/flights/predict", "headers": headers}
    asyncio.run(Cleaner(app)(scope, receive, send))
    body = json.loads(b"".join(message.get("body", b"") for message in sent))
    code = body["error"]["code"]
    assert (sent[0]["status"], code) == expected
    if code != "the model's":
        assert body["request_id"] == "mine"
        assert (b"retry-after" in dict(sent[0]["headers"])) == (code in {"overloaded", "timeout"})


def refused(headers=(), *, path="/models/flights/predict", receive=None, options=None, **scope):
    """Return status, headers and error of a request that must not reach the application."""
    sent = []

    async def app(scope, receive, send):
        raise AssertionError

    async def complete():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    whole = {"type": "http", "method": "POST", "path": path, "headers": list(headers), **scope}
    asyncio.run(Cleaner(app, **(options or {}))(whole, receive or complete, send))
    start, body = sent
    return start["status"], dict(start["headers"]), json.loads(body["body"])


@pytest.mark.parametrize(
    ("headers", "scope"),
    [
        ([(b"cookie", b"x" * 16_379)], {}),
        ([(b"a", b"b" * 999)] * 17, {}),
        ([(b"a", b"b")] * (MAX_HEADERS + 1), {}),
        ([(b"\xff", b"\xff" * 16_384)], {}),
        ([], {"raw_path": b"/" * 16_385}),
        ([], {"query_string": b"a" * 16_385}),
    ],
)
def test_endless_headers_are_refused(headers, scope):
    """In bytes, in number, also those that would be dropped; the answer is our own, and the connection ends."""
    status, answer, body = refused(headers, **scope)
    assert (status, body["error"]["code"]) == (431, "headers_too_large")
    assert answer[b"connection"] == b"close"
    assert answer[b"x-request-id"].decode() == body["request_id"]


def test_headers_up_to_the_bound_pass():
    """6 + 16,378 bytes are 16,384."""
    assert pass_through(method="GET", headers=[(b"cookie", b"x" * 16_378)]) is not None


def test_the_bound_is_the_clusters():
    """What a cluster was started with counts."""
    assert refused([(b"cookie", b"x" * 95)], options={"header_bytes": 100})[0] == 431


@pytest.mark.parametrize("path", ["/models/\ufffd", "/models/a\x00b", "/models/a\nb", "/models/\u2028"])
def test_a_path_with_odd_bytes_is_refused(path):
    """It would stand in logs; a client's own request id comes back."""
    status, _, body = refused([(b"x-request-id", b"mine")], path=path)
    assert (status, body["error"]["code"], body["request_id"]) == (400, "bad_path", "mine")


def test_a_small_body_that_does_not_come_is_given_up():
    """A byte now and then keeps nothing of ours busy for longer than the deadline."""

    async def trickle():
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x", "more_body": True}

    status, answer, body = refused([(b"content-length", b"60000")], receive=trickle, options={"body_s": 0.0})
    assert (status, body["error"]["code"], answer[b"connection"]) == (408, "slow_body", b"close")


@pytest.mark.parametrize(
    "name", [b"serve-multiplexed-model-id", b"serve_multiplexed_model_id", b"serve_multiplexed-model_id"]
)
def test_a_client_does_not_choose_among_replicas(name):
    """Serve would look for one that has this model, for a second."""
    assert clean_headers([(name, b"other")]) == []


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key"])
def test_a_key_that_is_no_text_stays_a_wrong_key(name):
    """Dropped, it would let its sender in where no key is needed."""
    assert clean_headers([(name, b"Bearer \xff")]) == [(b"x-api-key", b"?")]


@pytest.mark.parametrize(("given", "kept"), [(b"3\xa0", b"3?"), ("é".encode(), b"??"), (b"3", b"3"), (b"", b"")])
def test_a_pin_that_is_no_text_stays_a_wrong_pin(given, kept):
    """Dropped, it would be answered by another version than its sender wants."""
    assert clean_headers([(b"x-raymlops-version", given)]) == [(b"x-raymlops-version", kept)]


@pytest.mark.parametrize(("path", "refused"), [("/models/flights", True), ("/other", False)])
def test_a_model_has_no_websocket(path, refused):
    """Another application may; its headers are cleaned too."""
    seen, sent = [], []

    async def app(scope, receive, send):
        seen.append(scope["headers"])

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message["type"])

    scope = {"type": "websocket", "path": path, "headers": [(b"cookie", b"\xff")]}
    asyncio.run(Cleaner(app)(scope, receive, send))
    assert (seen, sent) == (([], ["websocket.close"]) if refused else ([[]], []))
