"""Both clients, each test with each: one set of questions, asked in a blocking way and from an event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import random
import ssl
import subprocess
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from certificates import certificate

from raymlops.errors import (
    EndpointDisconnectedError,
    EndpointTimeoutError,
    EndpointUnreachableError,
    InvalidRowsError,
    NotFoundError,
    OverloadedError,
    RaymlopsError,
    RefusedError,
    UsageError,
)
from raymlops.serving.client.async_client import AsyncClient
from raymlops.serving.client.client import Accepted, Client

BASE = "http://models.test"
SECRET = "rk_ada_0123456789abcdefghijklmnopqrstuvwxyz0123456"
ROW = {"distance": 2.0}
LABELS = [{"request_id": request_id, "row": 0, "label": 1} for request_id in "rs"]
ANSWER = httpx.Response(200, json={"outputs": [{"late": 4.0}], "model_version": "7", "request_id": "r"})


def test_an_endpoint_of_an_authority_of_ones_own(tmp_path, monkeypatch):
    """By an argument or the environment; without either it is not trusted, and a file that is none is refused."""
    cert, key = map(str, certificate(tmp_path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.handle_error = lambda *_: None  # a client that does not trust it
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"https://localhost:{server.server_port}"
        with pytest.raises(NotFoundError), Client(url, ca_file=cert, retries=0) as client:
            client.describe("m")
        with pytest.raises(EndpointUnreachableError), Client(url, retries=0) as client:
            client.describe("m")
        monkeypatch.setenv("RAYMLOPS_CA_FILE", cert)

        async def ask():
            async with AsyncClient(url, retries=0) as client:
                await client.describe("m")

        with pytest.raises(NotFoundError):
            asyncio.run(ask())
        server.shutdown()
        thread.join()
    with pytest.raises(UsageError, match="has no certificates"):
        Client(url, ca_file=key)


def refused(status, code, *, message="why", problems=(), headers=None):
    """Answer as a front does that refuses."""
    error = {"code": code, "message": message, "field": None, "problems": list(problems)}
    return httpx.Response(status, json={"error": error, "request_id": "r"}, headers=headers)


def predict(rows, **options):
    return lambda client: client.predict("flights", rows, **options)


def ask_one(client):
    return client.predict("flights", [ROW])


class Server:
    """Gives one answer after the other, the last for ever; an exception's class is raised. Remembers what came."""

    def __init__(self, *answers):
        self.answers = list(answers) or [ANSWER]
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, type):
            raise answer("broken", request=request)
        # Each time a response of its own: httpx consumes it.
        return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now = 0.0
        self.slept = []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    async def asleep(self, seconds):
        self.sleep(seconds)


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request, monkeypatch):
    """Use a client against a server and return what came of it; ``ask.slept`` are its pauses."""
    for name in ("RAYMLOPS_API_KEY", "RAYMLOPS_URL"):
        monkeypatch.delenv(name, raising=False)

    def asked(server, use=ask_one, *, base_url=BASE, **options):
        time = Time()
        asked.slept = time.slept
        options = {"transport": httpx.MockTransport(server), "clock": time.clock, "rng": random.Random(1)} | options
        if request.param == "blocking":
            with Client(base_url, sleep=time.sleep, **options) as client:
                return use(client)

        async def main():
            async with AsyncClient(base_url, sleep=time.asleep, **options) as client:
                return await use(client)

        return asyncio.run(main())

    return asked


def test_an_answer_has_outputs_version_and_request_id(ask):
    """And says how often it was asked for."""
    answer = ask(Server())
    assert (answer.outputs, answer.model_version, answer.request_id) == ([{"late": 4.0}], "7", "r")
    assert answer.attempts == 1


def test_a_request_says_what_it_wants(ask):
    """Path, body and headers as the endpoint reads them."""
    server = Server()
    use = lambda client: client.predict("a b", [ROW], request_id="mine", session="ada", version=3)  # noqa: E731
    ask(server, use, api_key=SECRET)
    (request,) = server.requests
    assert (request.method, str(request.url)) == ("POST", f"{BASE}/models/a%20b/predict")
    assert json.loads(request.content) == {"rows": [ROW]}
    wanted = {
        "x-request-id": "mine",
        "x-session-id": "ada",
        "x-raymlops-version": "3",
        "authorization": f"Bearer {SECRET}",
        "content-type": "application/json",
    }
    assert wanted.items() <= dict(request.headers).items()


def test_the_environment_says_where_and_who(ask, monkeypatch):
    """What is given wins over it; a line end is no part of a key."""
    monkeypatch.setenv("RAYMLOPS_URL", "http://from.env/prefix/")
    monkeypatch.setenv("RAYMLOPS_API_KEY", f"{SECRET}\n")
    server = Server()
    ask(server, base_url=None)
    ask(server, api_key="rk_other")
    urls = [str(request.url) for request in server.requests]
    assert urls == ["http://from.env/prefix/models/flights/predict", f"{BASE}/models/flights/predict"]
    keys = [request.headers["authorization"] for request in server.requests]
    assert keys == [f"Bearer {SECRET}", "Bearer rk_other"]


@pytest.mark.parametrize(
    "first",
    [
        httpx.ReadError,
        httpx.RemoteProtocolError,
        httpx.ConnectError,
        httpx.ConnectTimeout,
        httpx.ReadTimeout,
        httpx.Response(500, text="Internal Server Error"),
        httpx.Response(404, text="Path '/models/flights/predict' not found."),
        httpx.Response(503, text="Request dropped due to backpressure"),
        refused(504, "timeout"),
        refused(429, "rate_limited"),
    ],
    ids=str,
)
def test_what_passes_is_hidden(ask, first):
    """A broken connection, a lost replica, a proxy without routes, a busy endpoint: one more try, of one id."""
    server = Server(first, ANSWER)
    answer = ask(server)
    assert (answer.outputs, answer.attempts) == ([{"late": 4.0}], 2)
    assert len({request.headers["x-request-id"] for request in server.requests}) == 1
    assert server.requests[0].content == server.requests[1].content
    assert 0 <= ask.slept[0] <= 0.1


def test_an_outage_is_hidden_until_the_deadline(ask):
    """By default: 20 failures of all kinds in a row, and the caller has its answer within its 30 s."""
    failures = [httpx.ConnectError, httpx.ReadError, httpx.Response(503, text="busy"), httpx.ReadTimeout] * 5
    assert ask(Server(*failures, ANSWER)).attempts == 21
    assert sum(ask.slept) < 30
    with pytest.raises(EndpointUnreachableError, match="cannot connect"):
        ask(Server(httpx.ConnectError))
    assert 20 < sum(ask.slept) < 30


def test_two_requests_have_two_ids(ask):
    """Only the attempts of one share theirs."""
    server = Server()
    ask(server)
    ask(server)
    assert len({request.headers["x-request-id"] for request in server.requests}) == 2


@pytest.mark.parametrize(
    ("use", "reply", "found"),
    [
        (lambda client: client.describe("flights"), {"model_version": "7", "digest": "d"}, None),
        (lambda client: client.models(), {"models": [{"name": "flights"}]}, [{"name": "flights"}]),
        (lambda client: client.feedback("flights", LABELS), {"accepted": 2, "unmatched": [1]}, Accepted(2, (1,))),
        (lambda client: client.feedback("flights", LABELS), {"accepted": 2}, Accepted(2)),
    ],
    ids=["describe", "models", "feedback", "feedback of 0.1"],
)
def test_everything_is_safe_to_repeat(ask, use, reply, found):
    """Labels count once, however often they are sent."""
    server = Server(httpx.ReadError, httpx.Response(202, json=reply))
    assert ask(server, use) == (reply if found is None else found)
    assert len(server.requests) == 2


def test_nothing_deployed_is_no_model(ask):
    """There is no index then, and Serve answers for itself."""
    assert ask(Server(httpx.Response(404, text="Path '/' not found.")), lambda client: client.models()) == []


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (refused(404, "not_found", message="no such route"), NotFoundError, "no model answers at .*no such route"),
        (refused(401, "unauthenticated"), RefusedError, "401"),
        (refused(403, "forbidden"), RefusedError, "403"),
        (refused(413, "too_many_rows", message="at most 5000"), UsageError, "413: at most 5000"),
        (refused(422, "not_finite"), UsageError, "422: why"),
        (refused(500, "model_error", message="it raised"), RaymlopsError, "500: it raised"),
        (httpx.Response(307, headers={"location": "http://elsewhere"}), RaymlopsError, "307"),
        (httpx.LocalProtocolError, UsageError, "cannot be sent: broken"),
        (httpx.Response(200, json={"hello": "world"}), RaymlopsError, "not as a raymlops endpoint"),
        (httpx.Response(200, text="<html>"), RaymlopsError, "not as a raymlops endpoint"),
        (httpx.Response(200, json=[1]), RaymlopsError, "not as a raymlops endpoint"),
    ],
)
def test_what_is_final_is_asked_once(ask, answer, kind, message):
    """Whoever answers at the URL, the caller gets an error that says what was answered."""
    server = Server(answer)
    with pytest.raises(kind, match=message) as caught:
        ask(server)
    assert type(caught.value) is kind
    assert len(server.requests) == 1


def test_rows_that_do_not_fit_are_named(ask):
    """The server's list of problems is the exception's."""
    problem = {"row": 1, "field": "distance", "message": "expected a finite number"}
    with pytest.raises(InvalidRowsError) as caught:
        ask(Server(refused(422, "invalid_rows", problems=[problem])))
    assert (caught.value.problems[0].row, caught.value.problems[0].field) == (1, "distance")


@pytest.mark.parametrize(
    ("last", "kind", "message"),
    [
        (httpx.ConnectError, EndpointUnreachableError, r"cannot connect to .* \(3 attempts\): broken"),
        (httpx.ReadError, EndpointDisconnectedError, r"without an answer: ReadError \(3 attempts\)"),
        (httpx.ReadTimeout, EndpointTimeoutError, r"did not answer within 30 s \(3 attempts\)"),
        (httpx.Response(500, text="Internal Server Error"), RaymlopsError, r"500 \(3 attempts\)"),
        (httpx.Response(504, text="late"), EndpointTimeoutError, r"504 \(3 attempts\)"),
        (httpx.Response(502, text="lost"), EndpointDisconnectedError, r"502 \(3 attempts\)"),
        (httpx.Response(503, text="busy"), OverloadedError, r"503 \(3 attempts\)"),
    ],
    ids=str,
)
def test_what_does_not_pass_is_told(ask, last, kind, message):
    """After as many repeats as were allowed."""
    server = Server(last)
    with pytest.raises(kind, match=message) as caught:
        ask(server, retries=2)
    assert type(caught.value) is kind
    assert len(server.requests) == 3


def test_an_endpoint_that_asks_to_come_back_is_believed(ask):
    """It waits for as long as it was told; where that is longer than the caller waits, the caller is told."""
    busy = refused(429, "rate_limited", headers={"retry-after": "20"})
    assert ask(Server(busy, ANSWER)).attempts == 2
    assert 20 <= ask.slept[0] <= 20.1
    server = Server(busy)
    with pytest.raises(OverloadedError, match="429") as caught:
        ask(server, predict([ROW], timeout_s=10.0))
    assert (caught.value.retry_after_s, len(server.requests), ask.slept) == (20.0, 1, [])


def test_an_answer_that_drips_is_cut_off():
    """The deadline is for the whole answer, not for each of its bytes."""
    time = Time()

    class Dripping(httpx.SyncByteStream):
        def __iter__(self):
            while True:
                time.now += 1.0
                yield b" "

    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Dripping()))
    client = Client(BASE, transport=transport, clock=time.clock, sleep=time.sleep)
    with client, pytest.raises(EndpointTimeoutError, match=r"did not answer within 30 s \(\d attempts\)"):
        client.predict("flights", [ROW])
    assert 30.0 <= time.now <= 32.0


def test_a_hanging_endpoint_is_cut_off_in_a_loop():
    """The loop's own clock ends the attempt."""

    async def hang(request):
        await asyncio.Event().wait()

    async def main():
        async with AsyncClient(BASE, transport=httpx.MockTransport(hang)) as client:
            await client.predict("flights", [ROW], timeout_s=0.01)

    with pytest.raises(EndpointTimeoutError, match=r"did not answer within 0\.01 s"):
        asyncio.run(main())


FRAME = pd.DataFrame({"seats": [3.0, float("nan")], "miles": [0.5, float("nan")], "origin": ["JFK", None]})
SENT = [{"seats": 3, "miles": 0.5, "origin": "JFK"}, {"seats": None, "miles": None, "origin": None}]


@pytest.mark.parametrize(
    ("rows", "sent"),
    [
        ([{"a": np.float64(3), "b": np.float64("nan"), "c": np.arange(4)[::2]}], [{"a": 3.0, "b": None, "c": [0, 2]}]),
        (({"a": pd.NA},), [{"a": None}]),
        (FRAME, SENT),
        (FRAME.convert_dtypes(), SENT),
        (FRAME.iloc[::-1], SENT[::-1]),
        (pa.Table.from_pandas(FRAME), SENT),
        (pa.table({"seats": pa.array([3.0, None])}), [{"seats": 3}, {"seats": None}]),
        (pa.table({"miles": [1.0, 2.0]}), [{"miles": 1.0}, {"miles": 2.0}]),
    ],
    ids=["numpy", "tuple", "frame", "nullable", "reversed", "arrow", "gaps", "whole"],
)
def test_rows_come_in_the_forms_they_have(ask, rows, sent):
    """Whole numbers with gaps, which pandas makes floats of, are integers again: a column of either kind takes them."""
    server = Server()
    ask(server, predict(rows))
    assert json.loads(server.requests[0].content)["rows"] == sent


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (predict({"distance": [2.0]}), "rows are a dict"),
        (predict("rows"), "rows are a str"),
        (predict(7), "rows are a int"),
        (predict([{"a": 2**64}]), "cannot be sent as JSON: Integer exceeds 64-bit"),
        (predict([{"a": object()}]), "a value of type object"),
        (predict([{1: 2}]), "cannot be sent as JSON"),
        (predict([{"a": "\ud800"}]), "cannot be sent as JSON"),
        (predict(pd.DataFrame([[1, 2]], columns=["a", "a"])), "two columns have the same name: a, a"),
        (predict([ROW], request_id="a\nb"), "x-request-id cannot be sent"),
        (predict([ROW], session="übung"), "x-session-id cannot be sent"),
        (predict([ROW], version=""), "x-raymlops-version cannot be sent"),
    ],
)
def test_what_cannot_be_sent_is_not(ask, use, message):
    """The caller's mistake is named before anything leaves."""
    server = Server()
    with pytest.raises(UsageError, match=message):
        ask(server, use)
    assert server.requests == []


@pytest.mark.parametrize(
    ("base_url", "options", "message"),
    [
        ("http://ada:word@host", {}, "holds a credential"),
        ("models.test", {}, "is not the URL of an endpoint"),
        ("ftp://models.test", {}, "is not the URL of an endpoint"),
        ("http://", {}, "is not the URL of an endpoint"),
        ("http://host/?a=b", {}, "is not the URL of an endpoint"),
        (BASE, {"api_key": "rk with space "}, "API key cannot be sent"),
        (BASE, {"api_key": "rk\nx"}, "API key cannot be sent"),
        (BASE, {"timeout_s": 0}, "timeout_s is 0"),
        (BASE, {"attempt_timeout_s": -1}, "attempt_timeout_s is -1"),
        (BASE, {"retries": -1}, "retries is -1"),
    ],
)
def test_a_client_that_cannot_be_is_refused(ask, base_url, options, message):
    """Without saying the secret."""
    with pytest.raises(UsageError, match=message) as caught:
        ask(Server(), base_url=base_url, **options)
    assert not {"word", "rk"} & set(str(caught.value).replace(":", " ").replace("@", " ").split())


def test_an_endpoint_that_is_down_is_unreachable():
    """Port 1 answers nobody."""
    with (
        Client("http://127.0.0.1:1", retries=0) as client,
        pytest.raises(EndpointUnreachableError, match="cannot connect"),
    ):
        client.predict("flights", [ROW])


@pytest.mark.parametrize(
    ("base_url", "key", "warned"),
    [
        ("http://models.test/a", SECRET, True),
        ("http://models.test", None, False),
        ("https://models.test", SECRET, False),
        ("http://127.0.0.1:8000", SECRET, False),
        ("http://[::1]:8000", SECRET, False),
        ("http://localhost", SECRET, False),
    ],
)
def test_a_key_without_tls_is_warned_of(ask, caplog, base_url, key, warned):
    """Where it leaves this machine."""
    ask(Server(), base_url=base_url, api_key=key)
    texts = [record.getMessage() for record in caplog.records if "without TLS" in record.getMessage()]
    assert len(texts) == warned
    assert all("models.test" in text and SECRET not in text for text in texts)


@pytest.mark.parametrize("answer", [refused(401, "unauthenticated"), httpx.ReadError, refused(422, "x")], ids=str)
def test_a_key_is_in_no_error_repr_or_log(ask, answer, caplog):
    """Nor in the trace of an error, or in what a pickle of it holds."""
    caplog.set_level(logging.DEBUG)
    seen = []

    def use(client):
        seen.append(repr(client))
        return client.predict("flights", [ROW])

    with pytest.raises(RaymlopsError) as caught:
        ask(Server(answer), use, api_key=SECRET)
    seen += traceback.format_exception(caught.value)
    seen += [record.getMessage() for record in caplog.records]
    seen.append(repr(pickle.dumps(caught.value)))
    assert BASE in seen[0]
    assert [text for text in seen if SECRET in text] == []


def test_a_front_and_a_client_understand_each_other():
    """The answer, the refusal, the description and what both say of the rows, with a real front behind."""
    from serving_fakes import PREFIX, make_front
    from serving_fakes import ROW as FITS
    from serving_fakes import ask as ask_front

    def to_front(request):
        path = request.url.path.removeprefix(PREFIX)
        answer = ask_front(make_front(), request.method, path, content=request.content, headers=request.headers)
        return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)

    with Client(BASE, transport=httpx.MockTransport(to_front)) as client:
        answer = client.predict("flights", [FITS], request_id="mine")
        assert (answer.outputs, answer.model_version, answer.request_id) == ([{"late": 4.0}], "7", "mine")
        with pytest.raises(InvalidRowsError) as caught:
            client.predict("flights", [FITS, {**FITS, "distance": "far"}])
        assert (caught.value.problems[0].row, caught.value.problems[0].field) == (1, "distance")
        with pytest.raises(RaymlopsError, match=r"500: .*ArithmeticError"):
            client.predict("flights", [{**FITS, "distance": 666.0}])
        assert client.describe("flights")["model_version"] == "7"


@pytest.mark.parametrize("name", ["Client", "AsyncClient"])
def test_a_client_is_light(name):
    """A product's process loads no ray, torch or mlflow for it, and not even numpy or pydantic."""
    code = f"import sys; from raymlops import {name}; {name}(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {module.partition(".")[0] for module in done.stdout.split()}
    assert (
        loaded & {"ray", "torch", "mlflow", "optuna", "pandas", "pyarrow", "numpy", "pydantic", "sqlalchemy"} == set()
    )


@pytest.mark.parametrize("seconds", [0, -1, "a", float("nan"), float("inf"), 10**400, True, [1]])
def test_a_deadline_that_is_none_is_told(ask, seconds):
    """For all calls or for one of them, before anything is sent."""
    server = Server()
    for options in ({"timeout_s": seconds}, {"attempt_timeout_s": seconds}):
        with pytest.raises(UsageError, match="expected a number of seconds above 0"):
            ask(server, **options)
    with pytest.raises(UsageError, match="Leave it out"):
        ask(server, predict([ROW], timeout_s=seconds))
    assert server.requests == []


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda client: client.predict(None, [ROW]), "None is not the name of a model"),
        (lambda client: client.predict("", [ROW]), "'' is not the name of a model"),
        (lambda client: client.predict("..", [ROW]), "is not the name of a model"),
        (lambda client: client.predict("\ud800", [ROW]), "is not the name of a model"),
        (lambda client: client.describe(["flights"]), "is not the name of a model"),
        (lambda client: client.predict("flights", None), "rows are a NoneType"),
        (lambda client: client.feedback("flights", None), "labels are a NoneType"),
        (lambda client: client.feedback("flights", {"request_id": "r", "label": 1}), "labels are a dict"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_told(ask, use, message):
    """As what it is, and with what is expected; nothing is sent."""
    server = Server()
    with pytest.raises(UsageError, match=message) as caught:
        ask(server, use)
    assert caught.value.hint
    assert server.requests == []


@pytest.mark.parametrize("options", [{"retries": "a"}, {"retries": 1.5}, {"retries": True}, {"base_url": 5}])
def test_an_option_of_the_wrong_kind_is_told(ask, options):
    """Where the client is made."""
    with pytest.raises(UsageError, match=r"is 5|retries is"):
        ask(Server(), **options)


def test_a_closed_client_says_so(ask):
    """After its with block."""
    kept = []

    def keep(client):
        kept.append(client)
        return client.predict("flights", [ROW])

    def ask_again():
        answer = kept[0].predict("flights", [ROW])
        asyncio.run(answer)

    ask(Server(), keep)
    with pytest.raises(UsageError, match="this client is closed") as caught:
        ask_again()
    assert "with" in caught.value.hint
