from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from hashlib import sha256

import httpx
import pytest
from serving_fakes import PREFIX, ROW, SIGNATURE, FakeModel, ask, front_of, make_front, predict

from raymlops.serving.arrival import ARRIVED, stamp
from raymlops.serving.asgi import BODY
from raymlops.serving.auth import Access, KeyEntry
from raymlops.serving.protocols import oip
from raymlops.serving.refusal import Limits
from raymlops.serving.replica.parse_pool import ParsePool
from raymlops.serving.settings import Settings
from raymlops.serving.traffic import Traffic

DEEP = b'{"rows":' + b"[" * 100_000
GIVEN_TWICE = b'{"rows": [{"distance": 1, "distance": 2, "wind": 1, "origin": "JFK"}]}'


def test_rows_are_answered_in_order_with_version_and_request_id():
    """Two rows give two outputs, and the answer says who gave it."""
    response = predict(make_front(), [ROW, {**ROW, "distance": 5}], **{"x-request-id": "abc"})
    assert response.status_code == 200
    assert response.json() == {
        "outputs": [{"late": 4.0}, {"late": 10.0}],
        "model": "flights",
        "model_version": "7",
        "request_id": "abc",
    }
    assert response.headers["x-model-version"] == "7"
    assert response.headers["x-request-id"] == "abc"


def test_a_missing_output_is_null():
    """NaN has no JSON; a missing output is null, as a missing input is."""
    assert predict(make_front(), [{**ROW, "distance": 0}]).json()["outputs"] == [{"late": None}]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (b" \n ", 400, "empty_body"),
        (b"{", 400, "not_json"),
        (b"rows=1", 400, "not_json"),
        (b"\xef\xbb\xbf{}", 400, "not_json"),
        (b'{"rows": [{"origin": "\xff"}]}', 400, "not_utf8"),
        ('{"rows": []}'.encode("utf-16"), 400, "not_utf8"),
        (b'{"rows": [{"origin": "\\ud800"}]}', 400, "not_json"),
        (DEEP, 400, "too_deep"),
        (b'{"a":NaN,"rows":' + b"[" * 900 + b"]" * 900 + b"}", 422, "invalid_rows"),
        (b"NaN" + DEEP, 400, "not_json"),
        (GIVEN_TWICE, 400, "duplicate_key"),
        (b"[]", 422, "invalid_rows"),
        (b"null", 422, "invalid_rows"),
        (b"{}", 422, "invalid_rows"),
        (b'{"rows": []}', 422, "invalid_rows"),
        (b'{"rows": {}}', 422, "invalid_rows"),
        (b'{"rows": [[1]]}', 422, "invalid_rows"),
        (b'{"rows": [], "threshold": 1}', 422, "invalid_rows"),
        (b'{"rows": [{"distance": {"a": 1}, "origin": "JFK"}]}', 422, "invalid_rows"),
    ],
)
def test_a_bad_body_is_refused(body, status, code):
    """Whatever the bytes are, the answer is a 4xx that says what is wrong and whom to quote."""
    response = predict(make_front(), body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["message"]
    assert response.json()["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("literal", "field", "message"),
    [
        (b'{"distance": NaN, "origin": "JFK"}', "distance", "expected a finite number, got nan"),
        (b'{"distance": -Infinity, "origin": "JFK"}', "distance", "expected a finite number, got -inf"),
        (b'{"distance": 1e999, "origin": "JFK"}', "distance", "expected a finite number, got inf"),
        (b'{"distance": "1", "origin": "JFK"}', "distance", "expected a finite number, got the string '1'"),
        (b'{"distance": true, "origin": "JFK"}', "distance", "expected a finite number, got true"),
        (b'{"distance": 1, "origin": "LGA"}', "origin", "unknown category 'LGA'; known: EWR, JFK"),
        (b'{"distance": 1, "origin": "JFK", "gate": 4}', "gate", "unknown field; known: distance, origin, wind"),
        (b'{"distance": 1}', "origin", "is missing; expected a string"),
    ],
)
def test_a_bad_value_is_named_by_row_and_field(literal, field, message):
    """The second row is wrong, and the answer says so."""
    good = json.dumps(ROW).encode()
    response = predict(make_front(), b'{"rows": [' + good + b", " + literal + b"]}")
    assert response.status_code == 422
    assert response.json()["error"]["problems"] == [{"row": 1, "field": field, "message": message}]


def test_a_string_with_colons_is_no_duplicate_key():
    """More colons than keys only lead to a second reading, which finds nothing wrong."""
    response = predict(make_front(), [{**ROW, "origin": "12:30:00"}])
    assert response.json()["error"]["problems"][0]["message"].startswith("unknown category '12:30:00'")


def test_too_many_rows_are_refused():
    """The limit counts rows, and one more is too many."""
    front = make_front(Limits(max_rows=2))
    assert predict(front, [ROW] * 2).status_code == 200
    assert predict(front, [ROW] * 3).json()["error"]["code"] == "too_many_rows"


def test_a_large_body_is_refused_before_it_is_read():
    """A declared length above the limit is answered without asking for a byte of the body."""

    async def receive():
        pytest.fail("the body was asked for")

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [(b"content-length", b"50000000")]}
    reply = asyncio.run(make_front().reply(scope, receive))
    assert reply.status == 413


def test_a_large_body_of_undeclared_length_is_refused():
    """Chunks are counted as they come."""

    async def chunks():
        for _ in range(4):
            yield b" " * 1000

    response = predict(make_front(Limits(max_body_bytes=3000)), chunks())
    assert response.json()["error"]["code"] == "body_too_large"


def test_a_large_body_that_somebody_else_read_is_refused():
    """The index reads a body of undeclared length within a limit of its own; the model's counts as well."""
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], BODY: b" " * 3001}
    reply = asyncio.run(make_front(Limits(max_body_bytes=3000)).reply(scope, None))
    assert reply.status == 413


def test_a_large_good_body_is_answered():
    """A body that is parsed in a thread gives the same answer."""
    rows = [{"distance": index + 0.5, "wind": None, "origin": "JFK"} for index in range(5000)]
    outputs = predict(make_front(), rows).json()["outputs"]
    assert outputs[0] == {"late": 1.0}
    assert outputs[-1] == {"late": 9999.0}


def test_a_compressed_body_is_refused():
    """Nothing is inflated, so that no small body becomes a large one."""
    response = predict(make_front(), b"\x1f\x8b", **{"content-encoding": "gzip"})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_encoding")


def test_a_body_that_the_guard_has_read_is_used():
    """Behind the guard the body comes with the scope."""
    body = json.dumps({"rows": [ROW]}).encode()
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], BODY: body}

    async def receive():
        pytest.fail("the body was asked for")

    assert asyncio.run(make_front().reply(scope, receive)).status == 200


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        *(("GET", "/predict", "POST"), ("HEAD", "/feedback", "POST"), ("OPTIONS", "/v2/models/flights/infer/", "POST")),
        *(("POST", "", "GET, HEAD"), ("OPTIONS", "/docs", "GET, HEAD"), ("PUT", "//v2/health/live", "GET, HEAD")),
        ("POST", "/v2/models/flights/versions/7", "GET, HEAD"),
    ],
)
def test_a_wrong_method_names_the_right_one(method, path, allow):
    """405 comes with Allow."""
    response = ask(make_front(), method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allow)


def test_a_version_that_has_lost_its_route_still_answers():
    """Behind HAProxy a request may reach it without the mount point that Serve no longer knows."""
    body = json.dumps({"rows": [ROW]}).encode()
    scope = {"type": "http", "method": "POST", "path": f"{PREFIX}/predict", "headers": [], BODY: body}
    assert asyncio.run(make_front().reply(scope, None)).status == 200


@pytest.mark.parametrize("path", ["/nope", "/predict/x", "/../secret", "/%00"])
def test_an_unknown_path_is_not_found(path):
    """404, in the same form as every refusal."""
    response = ask(make_front(), "GET", path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("given", ["", "x" * 129, "caf\xe9", "a\x7fb"])
def test_a_strange_request_id_is_replaced(given):
    """An id that could split a log line or flood it is not repeated."""
    response = predict(make_front(), [ROW], **{"x-request-id": given.encode("latin-1")})
    assert response.json()["request_id"] != given
    assert len(response.json()["request_id"]) == 36


def test_a_model_that_raises_answers_500_and_goes_on(caplog):
    """The log has the reason, the client its request id, and the next request its answer."""
    front = make_front()
    with caplog.at_level(logging.ERROR):
        response = predict(front, [{**ROW, "distance": 666}], **{"x-request-id": "bad-one"})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "model_error"
    assert "devil" not in response.text
    assert "bad-one" in caplog.text
    assert "the devil is in the data" in caplog.text
    assert predict(front, [ROW]).status_code == 200


def test_a_bad_request_of_a_batch_fails_alone():
    """Of three that arrive together one makes the model raise; the other two have their answers."""
    front = make_front()

    async def together():
        transport = httpx.ASGITransport(front, root_path=PREFIX)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            bodies = [{"rows": [{**ROW, "distance": distance}]} for distance in (1, 666, 3)]
            return await asyncio.gather(*(client.post(f"{PREFIX}/predict", json=body) for body in bodies))

    assert [response.status_code for response in asyncio.run(together())] == [200, 500, 200]


def test_a_late_answer_is_a_504():
    """A model that takes longer than the deadline costs its request, not the replica."""

    class Slow(FakeModel):
        def predict(self, columns):
            if len(columns["distance"]) > 1:
                time.sleep(0.2)
            return super().predict(columns)

    front = front_of(Slow(), limits=Limits(timeout_s=0.05))
    front.warm_up()
    response = predict(front, [ROW] * 2000)  # more rows than run inline, so the worker thread has them
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    front.handler.close()


@pytest.mark.parametrize("path", ["/predict", "/invocations", "/v2/models/flights/infer", "/feedback"])
def test_what_arrived_too_long_ago_is_not_computed(path):
    """Its caller has been told so by now, and behind a replica that hung there may be many; the record has it."""
    served = []
    front = make_front(limits=Limits(timeout_s=30.0), record=served.append)
    calls = list(front.handler.model.calls)
    machine, now = stamp()
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], BODY: b"{}", ARRIVED: (machine, now - 31.0)}
    reply = asyncio.run(front.reply(scope, None))
    error = json.loads(reply.body)
    assert (reply.status, error.get("code") or error["error"]["code"]) == (504, "timeout")
    assert [(one.status, one.code) for one in served] == [(504, "timeout")]
    assert front.handler.model.calls == calls


@pytest.mark.parametrize("path", ["/predict", "/feedback"])
@pytest.mark.parametrize(("required", "status", "code"), [(True, 401, "unauthenticated"), (False, 503, "retry")])
def test_a_body_that_the_guard_did_not_read_is_no_empty_one(path, required, status, code):
    """Its caller has no valid key, and is told so; or has none and needs none any more, and sends it again."""
    front = make_front(settings=Settings(access=Access(required=required)))
    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"content-length", b"9" * 9)], BODY: None}
    reply = asyncio.run(front.reply(scope, None))
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (status, code)
    assert (b"retry-after", b"1") in reply.headers or required


def test_the_deadline_runs_from_the_arrival():
    """Of 60 s all but 50 ms are gone when the replica gets it."""
    front = make_front(limits=Limits(timeout_s=60.0))
    machine, now = stamp()
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], ARRIVED: (machine, now - 59.95)}
    reply = asyncio.run(asyncio.wait_for(front.reply(scope, asyncio.Event().wait), 30))
    assert reply.status == 504


@pytest.mark.parametrize("path", ["/predict", "/invocations", "/v2/models/flights/infer", "/feedback"])
def test_a_key_twice_among_many_is_named_and_holds_up_nobody(path):
    """70,000 bytes of distinct keys, the last of them given twice; they are read beside the event loop."""
    read_in = []

    class Watched(ParsePool):
        async def hold(self, leave, function, /, *given, **named):
            def watched():
                read_in.append(threading.current_thread())
                return function(*given, **named)

            return await super().hold(leave, watched)

    front = make_front(parsing=Watched())
    keys = b",".join(b'"%05x":1' % number for number in range(7_000))
    for body in (b'{%s,"%05x":2}', b'{"rows":[{%s,"%05x":2}]}'):
        response = ask(front, "POST", path, content=body % (keys, 6_999))
        error = response.json()
        assert response.status_code == 400
        assert "'01b57' is given twice" in (error["message"] if "message" in error else error["error"]["message"])
    assert len(read_in) == 2
    assert threading.main_thread() not in read_in
    front.handler.close()


@pytest.mark.parametrize("path", ["/predict", "/invocations", "/v2/models/flights/infer"])
@pytest.mark.parametrize("item", [b'"%06x":1', b"1%d", b"{}"])
def test_a_body_with_more_values_than_rows_may_have_is_not_parsed(path, item):
    """It would hold the interpreter for as long as it takes to make an object of each."""
    items = b",".join(item % number if b"%" in item else item for number in range(100_000))
    brackets = b'{"rows":[{%s}]}' if b":" in item else b'{"rows":[%s]}'
    response = ask(make_front(), "POST", path, content=brackets % items)
    assert response.status_code == 413
    assert "more than 35000 values" in response.text


def test_a_body_with_more_values_than_labels_may_have_is_not_parsed():
    """Lists among them count with their elements."""
    response = ask(make_front(), "POST", "/feedback", content=b'{"labels":[%s1]}' % (b"1," * 600_000))
    assert response.status_code == 413
    assert "more than 500000 values" in response.text


def test_a_text_may_have_as_many_commas_as_it_likes():
    """They separate no values; the row is wrong for another reason."""
    response = predict(make_front(), [{**ROW, "origin": ", \\" * 100_000}])
    assert response.status_code == 422


def test_warm_up_refuses_a_broken_example():
    """A replica whose own example fails never becomes ready."""

    class Broken(FakeModel):
        example = [{**ROW, "distance": 666}]  # noqa: RUF012

    front = front_of(Broken())
    with pytest.raises(ArithmeticError):
        front.warm_up()
    assert not front.ready


def test_values_too_far_out_are_the_callers_mistake():
    """A row to which the model has no finite answer is refused with 422; it is no failure of the model."""
    answer = predict(make_front(), [{**ROW, "distance": 1e300}])
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "not_finite"


HALF = b'{"\\ud800":NaN,"rows":[]}'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", HALF),
        ("/predict", b'{"rows": [{"distance": NaN, "\\udfff": 1}]}'),
        ("/invocations", b'{"dataframe_split": {"columns": ["\\ud800"], "data": [[NaN]]}}'),
        ("/feedback", b'{"labels": [{"request_id": "\\ud800", "label": NaN}]}'),
        ("/v2/models/flights/infer", b'{"id": "\\ud800", "inputs": [], "parameters": {"x": NaN}}'),
    ],
)
def test_half_a_character_is_refused_beside_a_nan_too(path, body):
    """JSON's escapes can write what is no text; nothing can answer with it."""
    response = ask(make_front(), "POST", path, content=body)
    code = response.json()["code"] if path.startswith("/v2") else response.json()["error"]["code"]
    assert (response.status_code, code) == (400, "not_json")


def test_below_v2_an_error_is_a_text_with_the_facts_beside_it():
    """The protocol's clients show the text; the same facts are there as everywhere."""
    front = make_front()
    body = {"inputs": [{"name": "distance", "shape": [1], "datatype": "FP64", "data": ["far"]}]}
    answer = ask(front, "POST", "/v2/models/flights/infer", json=body, headers={"x-request-id": "mine"}).json()
    native = predict(front, [{"distance": "far", "origin": "JFK"}]).json()["error"]
    assert answer.keys() == {"error", "request_id", *native}
    assert (answer["code"], answer["field"], answer["request_id"]) == ("invalid_rows", "distance", "mine")
    assert answer["error"] == answer["message"]
    assert ask(front, "GET", "/v2/nope").json()["code"] == "not_found"


@pytest.mark.parametrize("path", ["/predict", "/invocations", "/v2/models/flights/infer", "/feedback"])
def test_nobody_without_a_key_makes_it_hold_a_body(path):
    """401 before a byte of it is asked for."""

    async def receive():
        pytest.fail("the body was asked for")

    front = make_front(settings=Settings(access=Access(required=True)))
    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    assert asyncio.run(front.reply(scope, receive)).status == 401


def test_a_token_of_a_gateway_in_front_is_no_key():
    """It passes its own along: an open model answers, and one with keys takes them from the other header."""
    secret = "rk_k1_" + "s" * 43
    key = KeyEntry("k1", sha256(secret.encode()).hexdigest(), frozenset({"predict"}))
    closed = make_front(settings=Settings(access=Access(required=True, keys=(key,))))
    token = "Bearer eyJhbGciOi.e30.c2ln"
    headers = [{"authorization": token}, {"authorization": token, "x-api-key": secret}]
    for front, expected in ((make_front(), [200, 401]), (closed, [401, 200])):
        given = [ask(front, "POST", "/predict", json={"rows": [ROW]}, headers=each).status_code for each in headers]
        assert given == expected


def test_a_version_that_is_not_up_is_refused_before_the_body():
    """Whoever pins a request to it."""

    async def receive():
        pytest.fail("the body was asked for")

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [(b"x-raymlops-version", b"99")]}
    assert asyncio.run(make_front().reply(scope, receive)).status == 404


@pytest.mark.parametrize("broken", ["record", "refusal"])
def test_the_front_answers_whatever_breaks_within(broken, caplog):
    """A record that cannot be kept costs nobody their answer; what is worse is a 500 in the one form."""

    def fail(*_):
        raise ArithmeticError

    front = make_front(record=fail if broken == "record" else lambda _: None)
    if broken == "refusal":
        front.handler.refusal = fail
    answer = predict(front, [ROW])
    assert answer.status_code == 200
    answer = predict(front, b"{")
    assert answer.status_code == (400 if broken == "record" else 500)
    assert answer.json()["error"]["code"] == ("not_json" if broken == "record" else "internal")
    assert "ArithmeticError" in caplog.text


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/v2/models/flights", "/nope", "/predict"])
def test_an_answer_to_head_has_no_body(path):
    """It says how long the body of GET is, and sends none, whatever the status."""
    scope = {"type": "http", "method": "HEAD", "path": path, "headers": []}
    reply = asyncio.run(make_front().reply(scope, None))
    assert reply.body == b""
    assert int(dict(reply.headers)[b"content-length"]) > 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "DELETE", "TRACE", "NONSENSE"])
@pytest.mark.parametrize(
    "path", ["", "/", "//", "/predict/", "//predict", "/v2/", "/v2//models", "/v2/models/flights//infer", "/v2/models/"]
)
def test_odd_paths_and_methods_are_no_failure(method, path):
    """Slashes too many, methods that nobody offers: a page, or a refusal that says what is there."""
    response = ask(make_front(), method, path, content=b"{}")
    assert response.status_code in {200, 404, 405, 422}
    assert ("allow" in response.headers) == (response.status_code == 405)


def test_an_unknown_path_is_told_what_there_is():
    """Every way to ask, and where labels go."""
    message = ask(make_front(), "GET", "/nope").json()["error"]["message"]
    for word in (
        "predict",
        "feedback",
        "invocations",
        "v2/models/flights/infer",
        "docs",
        "openapi.json",
        "v2,",
        "ping",
    ):
        assert word in message


@pytest.mark.parametrize("pin", [b"8\xa0", b"\xa08", "é".encode(), b"8\x85", b"\xb2", b"", b"8.0", b"-8"])
def test_a_pin_that_is_no_number_is_refused(pin):
    """Rather than passed over: the caller wants one version, and would not notice that another one answers."""
    front = make_front(settings=Settings(traffic=Traffic(standing=(8,))))
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [(b"x-raymlops-version", pin)]}
    reply = asyncio.run(front.reply(scope, None))
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (404, "unknown_version")


@pytest.mark.parametrize(
    ("pins", "status"),
    [([b"7", b"8"], 400), ([b"8", b"7"], 400), ([b"7, 8"], 400), ([b"7", b"x"], 400), ([b"7", b"7"], 200)],
)
def test_two_pins_are_no_choice(pins, status):
    """In two headers or, as proxies join them, in one; the same twice is one."""
    front = make_front(settings=Settings(traffic=Traffic(standing=(8,))))
    headers = [(b"x-raymlops-version", pin) for pin in pins]
    body = json.dumps({"rows": [ROW]}).encode()
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, BODY: body}
    reply = asyncio.run(front.reply(scope, None))
    assert reply.status == status
    if status == 400:
        assert json.loads(reply.body)["error"]["code"] == "several_versions"


class Others:
    """Another version, whose metadata is its own."""

    async def metadata(self, version, headers):
        return {**oip.metadata(SIGNATURE, "flights", [str(version)]), "platform": f"that of {version}"}


def test_versions_that_can_be_asked_are_there_for_every_route():
    """Those that ``infer`` takes: listed, ready, and described by themselves; another one is told which they are."""
    front = make_front(settings=Settings(traffic=Traffic(standing=(12, 8))), peers=Others())
    own, model = ask(front, "GET", "/v2/models/flights/versions/7"), "/v2/models/flights"
    assert own.json() == ask(front, "GET", model).json()
    assert own.json()["versions"] == ["7", "8", "12"]
    assert ask(front, "GET", f"{model}/versions/8").json() == own.json() | {"platform": "that of 8"}
    assert ask(front, "GET", f"{model}/versions/8/ready").json() == {"name": "flights", "ready": True}
    for path in ("versions/9", "versions/9/ready", "versions/x"):
        refused = ask(front, "GET", f"{model}/{path}")
        assert (refused.status_code, refused.json()["code"]) == (404, "unknown_version")
        assert refused.json()["error"].endswith("live versions: 7, 8, 12")
    assert ask(front, "GET", f"{model}/versions/8/nope").json()["code"] == "not_found"


def test_to_read_about_another_version_needs_no_right_to_choose():
    """A key for the model; readiness none, as everywhere."""
    secret = "rk_k1_" + "s" * 43
    key = KeyEntry("k1", sha256(secret.encode()).hexdigest(), frozenset({"predict"}))
    access, traffic = Access(required=True, keys=(key,)), Traffic(standing=(8,))
    front = make_front(settings=Settings(access=access, traffic=traffic), peers=Others())
    path = "/v2/models/flights/versions/8"
    assert ask(front, "GET", path).status_code == 401
    assert ask(front, "GET", f"{path}/ready").status_code == 200
    assert ask(front, "GET", path, headers={"x-api-key": secret}).status_code == 200
    assert ask(front, "POST", f"{path}/infer", headers={"x-api-key": secret}).status_code == 403


def test_a_version_that_gives_no_answer_is_no_failure_of_this_one():
    """503, worth another try."""
    front = make_front(settings=Settings(traffic=Traffic(standing=(8,))))
    response = ask(front, "GET", "/v2/models/flights/versions/8")
    assert (response.status_code, response.json()["code"]) == (503, "version_unavailable")


def test_a_refusal_for_want_of_a_key_tells_nothing_of_the_model():
    """Neither its version; a caller with another error is told."""
    front = make_front(settings=Settings(access=Access(required=True)))
    assert "x-model-version" not in predict(front, [ROW]).headers
    assert "x-model-version" in ask(front, "GET", "/healthz").headers
