from __future__ import annotations

import asyncio
import json
import selectors
import tracemalloc
from collections import Counter
from hashlib import sha256
from types import SimpleNamespace

import pytest

from raymlops.serving.arrival import ARRIVED, Ages, stamp
from raymlops.serving.asgi import BODY, JSON
from raymlops.serving.auth import Access, Guard, KeyEntry
from raymlops.serving.json_scan import JsonScan
from raymlops.serving.proxy.bodies import Account, Body
from raymlops.serving.proxy.bounds import ANNOUNCED, INDEX, SILENT, UNKNOWN, Bounds, KnownBounds
from raymlops.serving.proxy.disconnect import CLIENT, Client
from raymlops.serving.proxy.middleware import MAX_HEADERS, ProxyMiddleware, clean_headers
from raymlops.serving.refusal import Refusal
from raymlops.serving.telemetry.metrics import _refusals

COMPLETE = {"type": "http.request", "body": b"", "more_body": False}
LARGE = {"type": "http.request", "body": bytes(64_001), "more_body": False}
OK = {"type": "http.response.start", "status": 200, "headers": []}


def pass_through(*, method="POST", path="/models/flights/predict", headers=(), messages=(COMPLETE,), arrived=None):
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

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers), ARRIVED: arrived}
    asyncio.run(ProxyMiddleware(app, known=known(flights=(30.0, 100_000)))(scope, receive, send))
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
        {"headers": [(b"content-length", b"64001")], "messages": [LARGE]},
        {"messages": [LARGE]},
        {"headers": [(b"content-length", b"4")], "path": "/other"},
    ],
)
def test_another_body_does_not_go_along(request_):
    """A large one, of whatever declared length, and other applications'."""
    assert BODY not in pass_through(**request_)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "GET", "HEAD", "BREW"])
@pytest.mark.parametrize("path", ["/models/flights/predict", "/v2/models/flights/infer"])
@pytest.mark.parametrize("headers", [[(b"content-length", b"100000")], [(b"transfer-encoding", b"chunked")]])
def test_a_body_of_another_method_is_nobodys(method, path, headers):
    """Whoever answers has an empty one at once: what never arrives keeps no slot of theirs."""
    seen = []

    async def app(scope, receive, send):
        seen.append((scope[BODY], await receive()))
        await send({"type": "http.response.start", "status": 405, "headers": []})

    sent = converse(
        app, [], method=method, path=path, headers=headers, known=known(flights=(30.0, 9), **{"": (30.0, 9)})
    )
    assert (sent[0]["status"], seen) == (405, [(b"", chunk(b"", more=False))])


def test_a_body_of_undeclared_length_that_turns_out_small_is_small():
    """It goes along, and makes no other one wait, nor is it a large one beside them."""
    account, seen = Account(), []

    async def app(scope, receive, send):
        seen.append((scope[BODY], account.large, account.held))
        await send(OK)

    pieces = [chunk(b"ab"), chunk(b"cd", more=False)]
    assert converse(app, pieces, account=account, known=known(flights=(30.0, 100)))[0]["status"] == 200
    assert (seen, account.large, account.held) == ([(b"abcd", 0, 4)], 0, 0)


def test_a_large_body_alone_is_held_once():
    """As one piece, of which the parts are dropped; it is not held here once the replica has it."""
    held = []

    async def app(scope, receive, send):
        held.append(tracemalloc.get_traced_memory()[0])
        message = await receive()
        size = len(message.pop("body"))
        held.append(tracemalloc.get_traced_memory()[0])
        assert size == 100 * 65_536
        await send(OK)

    pieces = [chunk(bytes(65_536)) for _ in range(99)] + [chunk(bytes(65_536), more=False)]
    tracemalloc.start()
    try:
        converse(app, pieces, known=known(flights=(30.0, 8_000_000)))
    finally:
        tracemalloc.stop()
    assert held[0] < 1.2 * 100 * 65_536
    assert held[1] < 1_000_000


def test_a_client_that_leaves_half_way_goes_no_further():
    """Half a body is nobody's request."""
    messages = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]
    assert pass_through(headers=[(b"content-length", b"4")], messages=messages) is None


def converse(
    app, messages, *, path="/models/flights/predict", headers=(), method="POST", client=None, arrived=None, **options
):
    """Return what is sent for a request whose body comes in these messages; further ones never come."""
    sent, left = [], list(messages)

    async def receive():
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    if client is not None:
        scope[CLIENT] = client
    if arrived is not None:
        scope[ARRIVED] = arrived
    options = {"known": known(flights=(30.0, 1_000)), **options}
    asyncio.run(asyncio.wait_for(ProxyMiddleware(app, **options)(scope, receive, send), 30))
    assert CLIENT not in scope
    return sent


def status_and_code(sent):
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]


async def unasked(scope, receive, send):
    raise AssertionError


def chunk(body, *, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


def known(**bounds):
    one = KnownBounds()
    for name, (timeout_s, size) in bounds.items():
        one.record(name, Bounds(timeout_s, size))
    return one


SECRET = "rk_k1_" + "s" * 43
KEY = KeyEntry("k1", sha256(SECRET.encode()).hexdigest(), frozenset({"predict"}), rate_per_s=1.0)
NO_KEY: list[tuple[bytes, bytes]] = []
A_KEY, THE_KEY = ([(b"x-api-key", secret.encode())] for secret in ("rk_k1_no", SECRET))
BEARER = [(b"authorization", b"Bearer " + SECRET.encode())]


@pytest.mark.parametrize("path", ["/models/flights/predict", "/v2/models/flights/infer"])
@pytest.mark.parametrize("declared", [b"2", b"100000"])
@pytest.mark.parametrize(
    ("access", "headers", "read"),
    [
        ((True, False), NO_KEY, False),
        ((True, False), A_KEY, True),
        ((False, False), NO_KEY, True),
        ((True, True), NO_KEY, False),
        ((True, True), A_KEY, False),
        ((True, True), THE_KEY, True),
        ((True, True), BEARER, True),
        ((False, True), NO_KEY, True),
        ((False, True), A_KEY, False),
    ],
)
def test_no_body_is_read_for_a_caller_without_a_key(path, declared, access, headers, read):
    """Its model's front refuses it all the same. A replica knows the keys, a proxy whether there has to be one.

    That counts against no rate: the key may be used once a second, and its caller is let in twice.
    """
    required, guarded = access
    one, account = known(**{"": (30.0, 100_000)}), Account()
    one.record("flights", Bounds(30.0, 100_000, key_required=required))
    if guarded:
        one.guard_of = {"flights": Guard(Access(required, (KEY,)))}.get
    seen = []

    async def app(scope, receive, send):
        seen.append((scope.get(BODY, b"large"), account.held))
        await send(OK)

    for _ in range(2):
        body = [chunk(b"{}" if declared == b"2" else bytes(100_000), more=False)] if read else []
        length = [(b"content-length", declared)]
        converse(app, body, path=path, headers=[*headers, *length], known=one, account=account)
    small = (b"{}", 2) if declared == b"2" else (b"large", 100_000)
    assert seen == [small if read else (None, 0)] * 2


def test_a_caller_who_is_let_in_by_now_is_asked_for_the_body():
    """A proxy that saw no answer for long knows of a key that nobody asks for any more: no caller notices."""
    one, bodies = known(), []
    one.record("flights", Bounds(30.0, 100_000, key_required=True))

    async def app(scope, receive, send):
        bodies.append(scope[BODY])
        status = 503 if scope[BODY] is None else 200
        told = {ANNOUNCED: ("flights", (30.0, 100_000, None, False)), "headers": [(b"content-type", JSON)]}
        await send({**OK, **told, "status": status})

    sent = converse(app, [chunk(b"{}", more=False)], headers=[(b"content-length", b"2")], known=one)
    assert bodies == [None, b"{}"]
    assert [message["status"] for message in sent] == [200]


def test_that_a_key_is_required_is_told_with_the_bounds():
    """As a release without it does not, and with whatever a later one tells beside."""
    one = KnownBounds()
    for told, expected in (((9.0, 5), False), ((9.0, 5, None, True), True), ((9.0, 5, 7, True, "later"), True)):
        one.take({ANNOUNCED: ("flights", told)})
        assert one.of_path("/models/flights/predict").key_required is expected
    one.record("", Bounds(60.0, 50))
    assert one.of_path("/v2/models/flights/infer").key_required
    assert not one.of_path("/v2/models/digits/infer").key_required
    one.record("", Bounds(60.0, 50, key_required=True))
    assert one.of_path("/v2/models/digits/infer").key_required


def test_a_model_is_asked_once_a_large_body_is_complete():
    """It then reads it all at once, whatever its client does; its place is not kept by what does not come."""
    bodies = []

    async def app(scope, receive, send):
        bodies.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})

    pieces = [chunk(b"ab"), chunk(bytes(64_000)), chunk(b"", more=False)]
    converse(app, pieces, known=known(flights=(30.0, 100_000)))
    assert bodies == [chunk(b"ab" + bytes(64_000), more=False)]


def test_a_body_above_the_models_bound_is_refused():
    """At once where it says so; else with the first byte too many, whatever is still to come. The connection ends."""
    bounds = known(flights=(30.0, 5))
    for headers, messages in (
        ([(b"content-length", b"6")], []),
        ([(b"content-length", b"9" * 30)], [chunk(b"abcdef")]),
        ([], [chunk(b"abc"), chunk(b"def")]),
    ):
        sent = converse(unasked, messages, headers=headers, known=bounds)
        assert status_and_code(sent) == (413, "body_too_large")
        assert (b"connection", b"close") in sent[0]["headers"]


KEYS = b'{"rows":[{' + b'"a":1,' * 20_000
"""20,000 values, of a body that goes on."""


@pytest.mark.parametrize(
    ("path", "headers", "body", "code"),
    [
        ("predict", [], KEYS, "too_many_rows"),
        ("predict", [], b'{"rows":' + b"[" * 70_000, "too_deep"),
        ("predict", [], b'{"rows":["' + b"[," * 40_000, None),
        ("feedback", [], KEYS, None),
        ("invocations", [(b"content-type", b"text/csv; charset=utf-8")], b"a,b\n" * 20_000, "too_many_rows"),
        ("invocations", [(b"content-type", b"text/csv")], b'a\n"' + b",\n" * 40_000 + b'"', None),
        ("predict", [(b"content-type", b"text/csv")], KEYS, "too_many_rows"),
        ("infer", [(b"inference-header-content-length", b"9")], b"{" * 70_000, None),
        ("predict", [(b"content-encoding", b"gzip")], b"," * 70_000, None),
    ],
)
def test_a_body_with_too_much_in_it_is_refused_while_it_arrives(path, headers, body, code):
    """Its rest is read and kept nowhere, as far as a body may go; texts have no values."""
    one, account = KnownBounds(), Account()
    one.record("flights", Bounds(30.0, 200_000, 10_000))
    log = []

    async def app(scope, receive, send):
        log.append(scope["method"])
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    chunks = [chunk(body[at : at + 16_384]) for at in range(0, len(body), 16_384)]
    chunks += [chunk(b" ")] * 5 + [chunk(b" " * 200_000)] if code else [chunk(b"", more=False)]

    sent = converse(app, chunks, path=f"/models/flights/{path}", headers=headers, known=one, account=account)
    assert account.held == 0
    if code is None:
        assert sent[0]["status"] == 200
    else:
        assert status_and_code(sent) == (413 if code == "too_many_rows" else 400, code)
        assert "POST" not in log


def test_a_bound_that_was_raised_since_the_last_answer_is_asked_for():
    """The body is to come again, and then reaches the model."""
    one = KnownBounds()
    one.record("flights", Bounds(30.0, 8_000_000, 10_000))
    app = answering(told=(30.0, 8_000_000, 60_000))
    pieces = [chunk(KEYS), chunk(b"", more=False)]
    assert status_and_code(converse(app, list(pieces), known=one)) == (503, "retry")
    assert converse(app, list(pieces), known=one)[0]["status"] == 200


def test_the_gateway_has_a_models_own_bound_of_values():
    """Once it is known, and until it is forgotten."""
    one = KnownBounds()
    path = "/v2/models/flights/infer"
    one.record("flights", Bounds(30.0, 5, 10))
    assert one.of_path(path) is None
    one.record("", Bounds(60.0, 50))
    assert one.of_path(path) == Bounds(60.0, 50, 10)
    one.forget("flights")
    assert one.of_path(path) == Bounds(60.0, 50)


def answering(log=None, *, told=None, headers=()):
    """Return an application that answers 200, and tells these bounds of every name but ``nobody``."""

    async def app(scope, receive, send):
        name = scope["path"].split("/")[2]
        body = await receive() if scope["method"] == "POST" and BODY not in scope else None
        if log is not None:
            log.append((scope["method"], scope["path"], body and len(body["body"])))
        start = {"type": "http.response.start", "status": 200, "headers": list(headers)}
        await send(start if told is None or name == "nobody" else {**start, ANNOUNCED: (name, told)})
        await send({"type": "http.response.body", "body": b""})

    return app


def test_bounds_come_with_a_models_answers():
    """They are taken out of the first one; other models keep theirs."""
    bounds, app = KnownBounds(), answering(told=(30.0, 5))
    (start, _) = converse(app, [], method="GET", known=bounds)
    assert start == {"type": "http.response.start", "status": 200, "headers": []}
    six = [chunk(b"abcdef", more=False)]
    assert status_and_code(converse(unasked, six, known=bounds)) == (413, "body_too_large")
    assert bounds.of_path("/models/digits/predict") == UNKNOWN


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"9000000")]])
@pytest.mark.parametrize(("told", "status"), [((30.0, 9_000_000), 200), ((30.0, 8_500_000), 413)])
def test_a_model_is_asked_for_its_bounds_before_a_larger_body_is_read(headers, told, status):
    """Larger than what counts until it has told, or of unknown size: its own bounds are in force from the first."""
    log = []
    nine = [chunk(bytes(9_000_000), more=False)]
    sent = converse(answering(log, told=told), nine, headers=headers, known=KnownBounds())
    assert sent[0]["status"] == status
    assert log[0] == ("GET", "/models/flights/readyz", None)
    assert log[1:] == ([("POST", "/models/flights/predict", 9_000_000)] if status == 200 else [])


def test_a_smaller_body_asks_for_nothing_before():
    """It is within what counts for a name of which nothing is known."""
    log = []
    eight = [chunk(bytes(8_000_000), more=False)]
    converse(answering(log), eight, headers=[(b"content-length", b"8000000")], known=KnownBounds())
    assert log == [("POST", "/models/flights/predict", 8_000_000)]


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"9000000")]])
def test_a_large_body_for_nobody_is_to_come_again(headers):
    """Not 413, as a model of that name may allow it; what was read of it is forgotten."""
    account = Account()
    nine = [chunk(bytes(9_000_000), more=False)]
    path = "/models/nobody/predict"
    app = answering(told=(30.0, 9_000_000))
    sent = converse(app, nine, path=path, headers=headers, known=KnownBounds(), account=account)
    assert status_and_code(sent) == (503, "retry")
    assert (b"retry-after", b"1") in sent[0]["headers"]
    assert account.held == 0


def test_a_model_of_an_earlier_release_tells_no_bounds():
    """Its answers show that it is a model; it has those that its own front then makes smaller."""
    log, bounds = [], KnownBounds()
    nine = [chunk(bytes(9_000_000), more=False)]
    app = answering(log, headers=[(b"x-model-version", b"7")])
    assert converse(app, nine, known=bounds)[0]["status"] == 200
    assert bounds.of_path("/models/flights/predict") == SILENT
    bounds.record("digits", Bounds(30.0, 5))
    converse(app, [], method="GET", path="/models/digits", known=bounds)
    assert bounds.of_path("/models/digits") == Bounds(30.0, 5)


def test_all_waiting_bodies_together_have_a_bound():
    """Of 400 bytes: 200 and 100 of two models wait, a third is told to come again, a small one still has room."""
    account, models = Account(400), known(a=(30.0, 200), b=(30.0, 200), c=(30.0, 200))
    seen = []

    async def app(scope, receive, send):
        seen.append(account.held)
        await nested(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def nested(path):
        if path == "/models/a/predict":
            assert await ask("b", 100) == 200
        elif path == "/models/b/predict":
            assert (await ask("c", 100), await ask("c", 100, declared=True)) == (503, 200)

    async def ask(name, size, *, declared=False):
        answers = []

        async def body():
            return chunk(bytes(size), more=False)

        async def keep(message):
            answers.append(message)

        headers = [(b"content-length", str(size).encode())] if declared else []
        scope = {"type": "http", "method": "POST", "path": f"/models/{name}/predict", "headers": headers}
        await ProxyMiddleware(app, account=account, known=models)(scope, body, keep)
        return answers[0]["status"]

    assert asyncio.run(ask("a", 200)) == 200
    assert seen == [200, 300, 400]
    assert account.held == 0


@pytest.mark.parametrize(
    ("model", "small", "held", "fits"),
    [("a", False, 200, False), ("a", False, 199, True), ("b", False, 200, True), ("a", True, 299, True)],
)
def test_one_model_has_a_half_of_what_may_wait(model, small, held, fits):
    """Of 400 bytes 200 for its large bodies and 300 with its small ones: the others always have the rest."""
    account = Account(400)
    account.add("a", held)
    assert account.has_room(model, 1, small=small, limit=5) is fits
    account.add("a", 300 - held)
    assert not account.has_room("a", 1, small=True, limit=5)
    assert account.has_room("b", 100, small=True, limit=5)


def test_names_of_no_model_have_one_share_together():
    """However many of them a client invents."""
    account = Account(16_000_000)
    account.add(None, 8_000_000)
    body = [chunk(bytes(100), more=False)]
    options = {"account": account, "known": known(flights=(30.0, 1_000))}
    sent = converse(answering(), body, path="/models/invented/predict", **options)
    assert status_and_code(sent) == (503, "overloaded")
    assert converse(answering(), body, **options)[0]["status"] == 200


def test_a_body_that_stops_is_given_up():
    """Long before its deadline, with what it held."""
    account = Account()
    sent = converse(unasked, [chunk(b"abc")], account=account, known=known(flights=(300.0, 100)), body_s=0.01)
    assert (*status_and_code(sent), account.held) == (408, "slow_body", 0)


@pytest.mark.parametrize(("seconds", "expected"), [(60.0, bytes(24)), (20.0, None)])
def test_a_wait_for_the_others_is_no_pause_of_the_clients(seconds, expected):
    """Two bodies of three pieces of 8 bytes, a byte a second: pieces wait for 16 s, where a client may pause for 10.

    The deadline of the request runs on. Where that wait took most of it, it is no fault of the client's.
    """

    async def scenario():
        account = Account(pace_bytes_per_s=1.0, clock=lambda: 0.0)
        account.note_small()

        async def read():
            left = [chunk(bytes(8)), chunk(bytes(8)), chunk(bytes(8), more=False)]

            async def receive():
                await asyncio.sleep(0)
                return left.pop(0)

            with Body(account, b"") as body:
                return b"".join(await body.read(receive, model="a", limit=99, seconds=seconds, pause_s=10.0))

        return await asyncio.gather(read(), read(), return_exceptions=True)

    first, second = run_on_a_clock(scenario())
    if expected is None:
        assert (first.status, second.status) == (503, 503)
        assert (first.code, second.code) == ("overloaded", "overloaded")
    else:
        assert first == second == expected


def test_a_client_that_left_gives_its_turn_away():
    """Three bodies of two pieces of 8 bytes, a byte a second: nobody waits for the one whose client left meanwhile."""

    async def scenario():
        loop, account = asyncio.get_running_loop(), Account(pace_bytes_per_s=1.0, clock=lambda: 0.0)
        account.note_small()
        held = []

        async def read(*, leaves):
            left = [chunk(bytes(8)), {"type": "http.disconnect"} if leaves else chunk(bytes(8), more=False)]

            async def receive():
                await asyncio.sleep(0)
                return left.pop(0)

            with Body(account, b"", has_left=lambda: leaves) as body:
                read = await body.read(receive, model="a", limit=99, seconds=60.0, pause_s=10.0)
            held.append(account.held)
            return loop.time(), read and b"".join(read)

        answers = await asyncio.gather(read(leaves=False), read(leaves=True), read(leaves=False))
        return answers, held

    answers, held = run_on_a_clock(scenario())
    assert answers == [(8.0, bytes(16)), (8.0, None), (16.0, bytes(16))]
    assert held == [16, 8, 0]


def test_bodies_that_are_refused_have_one_place_in_the_pace():
    """Four of them and a good one of three pieces of 8 bytes, a byte a second: it waits for one of them, not for each.

    Those that the deadline ends are told why they were refused, not that they were slow.
    """

    async def scenario():
        loop, account = asyncio.get_running_loop(), Account(pace_bytes_per_s=1.0, clock=lambda: 0.0)
        account.note_small()

        async def read(text, *, most):
            left = [*(chunk(text) for _ in range(9)), chunk(text, more=False)] if most else [chunk(text)] * 3

            async def receive():
                await asyncio.sleep(0)
                return left.pop(0) if len(left) > 1 or most else {**left.pop(0), "more_body": False}

            with Body(account, b"") as body:
                body.scan = JsonScan(most)
                await body.read(receive, model="a", limit=999, seconds=100.0, pause_s=50.0)
            return loop.time()

        bad = [read(b"," * 8, most=1) for _ in range(4)]
        return await asyncio.gather(*bad, read(b" " * 8, most=None), return_exceptions=True)

    *refused, good = run_on_a_clock(scenario())
    assert {refusal.code for refusal in refused} == {"too_many_rows"}
    assert good <= 40.0


def test_the_longest_pause_ends_where_room_is_needed():
    """Of 400 bytes one model's large bodies have 200: who paused for a second at least makes room for the next.

    A few bytes now and then are a pause too.
    """
    answers = {}

    async def scenario():
        loop, account = asyncio.get_running_loop(), Account(400)

        async def read(name, at, pieces, *, complete=True):
            left = list(pieces)

            async def receive():
                if not left:
                    await asyncio.Event().wait()
                size = left.pop(0)
                await asyncio.sleep(1.0 if size == 2 else 0.0)
                return chunk(bytes(size), more=not complete or bool(left))

            await asyncio.sleep(at)
            with Body(account, b"") as body:
                try:
                    await body.read(receive, model="a", limit=99, seconds=60.0, pause_s=30.0)
                    answers[name] = "read"
                except Refusal as refusal:
                    answers[name] = (refusal.code, loop.time())

        tasks = [
            asyncio.create_task(each)
            for each in (
                read("trickles", 0.0, [80, 2, 2, 2, 2, 2], complete=False),
                read("stops", 2.0, [90], complete=False),
                read("first", 5.5, [60]),
                read("stops too", 6.0, [60], complete=False),
                read("stops last", 6.1, [60], complete=False),
                read("early", 6.5, [90]),
                read("second", 7.5, [90]),
            )
        ]
        await asyncio.sleep(8.0)
        held = account.held
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return held, account.held

    assert run_on_a_clock(scenario()) == (60, 0)
    assert answers == {
        "trickles": ("slow_body", 5.5),
        "first": "read",
        "stops": ("slow_body", 6.1),
        "early": ("overloaded", 6.5),
        "stops too": ("slow_body", 7.5),
        "second": "read",
    }


def test_bodies_for_unknown_names_have_an_eighth():
    """Whoever invents them takes no more from the models."""
    account = Account(800)
    assert account.has_room(None, 100, small=False, limit=5)
    assert not account.has_room(None, 101, small=True, limit=5)
    assert account.has_room(None, 101, small=False, limit=101)


@pytest.mark.parametrize(("status", "expected"), [(200, True), (401, False), (422, False)])
def test_a_small_body_counts_once_it_is_answered(status, expected):
    """Large ones make room for it; for one that is refused nobody has to."""
    now = 0.0
    account = Account(pace_bytes_per_s=1.0, clock=lambda: now)

    async def app(scope, receive, send):
        await send({**OK, "status": status})

    converse(app, [chunk(b"{}", more=False)], headers=[(b"content-length", b"2")], account=account)
    assert account.beside_small is expected


def test_a_body_that_goes_on_may_take_its_deadline():
    """However long it takes to come in all, as no pause is too long; nothing in a message is a pause too."""

    async def scenario(chunks):
        loop = asyncio.get_running_loop()
        account = Account()
        left = list(chunks)

        async def receive():
            loop.now += 6.0
            for _ in range(2):  # in which a timer that is due comes first
                await asyncio.sleep(0)
            return left.pop(0)

        with Body(account, b"") as body:
            pieces = await body.read(receive, model="a", limit=9, seconds=60.0, pause_s=10.0)
            return b"".join(pieces)

    assert run_on_a_clock(scenario([chunk(b"a"), chunk(b"b"), chunk(b"c", more=False)])) == b"abc"
    with pytest.raises(Refusal) as caught:
        run_on_a_clock(scenario([chunk(b"a"), chunk(b""), chunk(b""), chunk(b"c", more=False)]))
    assert caught.value.code == "slow_body"


def run_on_a_clock(coroutine):
    """Return what a coroutine gives in a loop whose time is ``now``, which the coroutine moves, or its waiting does."""

    class Waiting(selectors.DefaultSelector):
        def select(self, timeout=None):
            loop.now += timeout or 0.0
            return super().select(0)

    class Loop(asyncio.SelectorEventLoop):
        now = 0.0

        def time(self):
            return self.now

    loop = Loop(Waiting())
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(coroutine)


@pytest.mark.parametrize("messages", [[chunk(b"abc"), {"type": "http.disconnect"}], [chunk(b"abc")]])
def test_a_body_that_is_not_complete_is_forgotten(messages):
    """Its client left, or it did not come in time."""
    account = Account()
    sent = converse(unasked, messages, account=account, known=known(flights=(0.01, 100)))
    assert account.held == 0
    assert [message["status"] for message in sent[:1]] == ([] if len(messages) == 2 else [408])


@pytest.mark.parametrize("swallows", [True, False])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_request_that_no_replica_takes_ends_at_its_deadline(swallows, method):
    """Cancelled in Serve, which may answer that with a text of its own; the client is told in our form."""
    ended = []

    async def app(scope, receive, send):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            if not swallows:
                raise
            await send({"type": "http.response.start", "status": 499, "headers": []})
            await send({"type": "http.response.body", "body": b"cancelled"})

    sent = converse(app, [chunk(b"", more=False)], method=method, known=known(flights=(-0.99, 100)))
    assert status_and_code(sent) == (504, "timeout")
    assert ended == ["cancelled"]


@pytest.mark.parametrize("swallows", [True, False])
def test_a_client_that_leaves_takes_its_request_along(swallows):
    """It is cancelled in Serve, wherever it waits, and nothing else of this process is."""
    client = Client()

    async def app(scope, receive, send):
        asyncio.get_running_loop().call_soon(client.leave)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not swallows:
                raise

    assert converse(app, [chunk(b"", more=False)], client=client) == []
    left = Client()
    left.leave()
    assert converse(unasked, [chunk(b"", more=False)], client=left) == []


def test_the_moment_of_arrival_goes_along():
    """In the scope, where no header of a client's comes."""
    scope = pass_through(headers=[(b"raymlops.arrived", b"0")])
    assert 0.0 <= Ages().age_s(scope[ARRIVED]) < 60.0
    assert ARRIVED not in pass_through(path="/other")


def test_the_deadline_runs_from_the_first_byte():
    """A request whose headers, or the answers to earlier ones, took longer is given to nobody."""
    machine, now = stamp()
    assert converse(unasked, [chunk(b"{}", more=False)], arrived=(machine, now - 32.0))[0]["status"] == 504
    assert Ages().age_s(pass_through(arrived=(machine, now - 20.0))[ARRIVED]) >= 20.0


def test_serve_keeps_no_deadline_of_its_own_for_a_model():
    """What a client says of it is dropped before."""
    scope = pass_through(headers=[(b"x-request-timeout-seconds", b"9999")])
    assert [value for name, value in scope["headers"] if name == b"x-request-timeout-seconds"] == [b"0"]


def test_the_hosts_own_path_to_models_is_bounded_like_theirs():
    """From the first answer of the index on, which tells the largest bounds of all models."""
    bounds = known(**{"": (30.0, 5)})
    sent = converse(unasked, [chunk(b"abcdef")], path="/v2/models/flights/infer", known=bounds)
    assert sent[0]["status"] == 413


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
    asyncio.run(ProxyMiddleware(app)(scope, receive, send))
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
    asyncio.run(ProxyMiddleware(app, **(options or {}))(whole, receive or complete, send))
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


def test_serves_list_of_routes_is_not_for_everyone():
    """It names models that are hidden from callers without a key; the health check stays."""
    assert pass_through(method="GET", path="/-/routes") is None
    assert pass_through(method="GET", path="/-/healthz") is not None


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


def handshake(app, path, *, extensions=True):
    """Return the messages that answer a websocket's handshake, and the headers that the application saw."""
    seen, sent = [], []

    async def watched(scope, receive, send):
        seen.append(scope["headers"])
        await app(scope, receive, send)

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": path, "headers": [(b"cookie", b"\xff")]}
    if extensions:
        scope["extensions"] = {"websocket.http.response": {}}
    asyncio.run(ProxyMiddleware(watched)(scope, receive, send))
    return sent, seen


async def taking(scope, receive, send):
    await send({"type": "websocket.accept"})


async def raising(scope, receive, send):
    raise AssertionError


async def answering_500(scope, receive, send):
    """Serve's way to report what a replica raised."""
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b"Internal Server Error"})


@pytest.mark.parametrize(
    ("app", "path"), [(taking, "/models/flights"), (raising, "/"), (raising, "/v2/models"), (answering_500, "/x")]
)
def test_a_websocket_that_nobody_takes_is_refused_in_our_form(app, path):
    """Never by a 500; a model has none, whoever answers for it."""
    (start, body), seen = handshake(app, path)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 400)
    facts = json.loads(body["body"])
    assert (facts if "/v2" in path else facts["error"])["code"] == "no_websocket"
    assert (seen == []) == path.startswith("/models/")
    assert handshake(app, path, extensions=False)[0] == [{"type": "websocket.close", "code": 1008}]


def test_another_application_may_take_a_websocket():
    """Its headers are cleaned too."""
    assert handshake(taking, "/other") == ([{"type": "websocket.accept"}], [[]])


@pytest.mark.parametrize("path", ["/-/guard", "/models/nobody/-/guard"])
def test_the_guard_answers_for_itself(path):
    """Wherever it is, without the application: operators ask whether it is in force, and by which bound."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        raise AssertionError

    async def app(_scope, _receive, _send):
        raise AssertionError

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "headers": []}
    asyncio.run(ProxyMiddleware(app, header_bytes=2048)(scope, receive, send))
    start, body = sent
    assert start["status"] == 200
    assert json.loads(body["body"]) == {"guard": {"max_header_bytes": 2048}}


async def read_pieces(account, *, model="flights"):
    """Read a body of three pieces that arrive one by one."""
    left = [{"type": "http.request", "body": bytes(1000), "more_body": more} for more in (True, True, False)]

    async def receive():
        await asyncio.sleep(0)
        return left.pop(0)

    with Body(account, b"") as body:
        pieces = await body.read(receive, model=model, limit=10_000, seconds=60.0, pause_s=60.0)
        return b"".join(pieces)


@pytest.mark.parametrize(
    ("small", "later_s", "model", "expected"),
    [(False, 0.0, "flights", 2), (True, 0.0, "flights", 0), (True, 2.0, "flights", 2), (False, 0.0, INDEX, 0)],
)
def test_several_large_bodies_beside_small_ones_are_paced(small, later_s, model, expected):
    """At a byte a second here; without small ones, or later, at once. The index sees none, and takes them as given."""
    now = 0.0
    account = Account(pace_bytes_per_s=1.0, clock=lambda: now)

    async def both():
        nonlocal now
        if small:
            account.note_small()
            now = later_s
        tasks = [asyncio.create_task(read_pieces(account, model=model)) for _ in range(2)]
        for _ in range(20):
            await asyncio.sleep(0)
        done = sum(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return done

    assert asyncio.run(both()) == expected


def test_a_large_body_alone_is_never_paced():
    """However many small ones are beside it."""
    account = Account(pace_bytes_per_s=1.0)

    async def beside_small():
        account.note_small()
        return await read_pieces(account)

    assert asyncio.run(beside_small()) == bytes(3000)


@pytest.mark.parametrize(("haproxy", "seen"), [("0", [b"192.0.2.1", b"10.0.0.1"]), ("1", [b"192.0.2.1"])])
def test_the_address_of_a_client_goes_along_after_what_it_says_itself(monkeypatch, haproxy, seen):
    """Behind HAProxy, which adds it, the peer is HAProxy."""
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", haproxy)
    found = []

    async def app(scope, receive, send):
        found.append([value for name, value in scope["headers"] if name == b"x-forwarded-for"])

    async def send(message):
        pass

    headers = [(b"x-forwarded-for", b"192.0.2.1")]
    scope = {"type": "http", "method": "GET", "path": "/models/m", "headers": headers, "client": ("10.0.0.1", 4711)}
    asyncio.run(ProxyMiddleware(app)(scope, nothing, send))
    assert found == [seen]


async def nothing():
    await asyncio.Event().wait()


def test_refusals_are_counted_by_code(monkeypatch):
    """Of the guard itself; what a model refuses, the model counts."""
    counted = Counter()
    counter = SimpleNamespace(inc=lambda value, tags: counted.update({tuple(tags.values()): value}))
    monkeypatch.setattr("raymlops.serving.telemetry.metrics.ray_instrument", lambda family: counter)
    _refusals.cache_clear()
    try:
        for _ in range(2):
            converse(unasked, [], headers=[(b"a", b"")] * (MAX_HEADERS + 1))
        converse(unasked, [], path="/-/routes", method="GET")
    finally:
        _refusals.cache_clear()
    assert counted == {("http", "431", "headers_too_large"): 2, ("http", "404", "not_found"): 1}
