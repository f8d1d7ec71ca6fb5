"""Bad input to a real endpoint behind either proxy, while a good client goes on asking."""

from __future__ import annotations

import asyncio
import json
import statistics
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import asking_forms as forms
import bad_requests
import grpc
import httpx
import pytest
from endpoints import SECRETS, endpoint
from launched_endpoint import launched_endpoint
from machines import NEEDS_MACHINES
from serving_bundles import MIXED_ROWS

pytestmark = pytest.mark.soak

TIMEOUT_S = 45.0
INDEX = {"application": "raymlops", "x-api-key": SECRETS["good"]}


@pytest.fixture(scope="module", params=["python", "haproxy", pytest.param("launched", marks=NEEDS_MACHINES)])
def served(request, tmp_path_factory):
    """An endpoint of ``up`` behind each proxy, and one of two machines that a launcher file started."""
    launched = request.param == "launched"
    with launched_endpoint(tmp_path_factory.mktemp("launched")) if launched else endpoint(request.param) as running:
        running.change(keys=("good", "doomed"), auth="keys")
        yield running


@dataclass
class GoodClient:
    """Asks ten times a second from a thread of its own."""

    url: str
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with httpx.Client(headers={"x-api-key": SECRETS["good"]}, timeout=TIMEOUT_S) as client:
            expected = client.post(f"{self.url}/predict", json={"rows": MIXED_ROWS}).json()["outputs"]
            while not self.ended.wait(0.1) or len(self.seconds) < 5:
                start = time.perf_counter()
                try:
                    answer = client.post(f"{self.url}/predict", json={"rows": MIXED_ROWS})
                    if answer.status_code != 200 or answer.json()["outputs"] != expected:
                        self.wrong.append(answer.text[:300])
                except httpx.HTTPError as error:
                    self.wrong.append(repr(error))
                self.seconds.append(time.perf_counter() - start)


@pytest.fixture(autouse=True)
def good_client(served, request):
    """Every test here runs beside a client to whom nothing may happen."""
    client = GoodClient(served.url)
    thread = threading.Thread(target=client.run)
    thread.start()
    yield client
    client.ended.set()
    thread.join()
    asked = sorted(client.seconds)
    print(
        f"\n{request.node.name}: beside it {len(asked)} good requests, {len(client.wrong)} wrong, "
        f"median {statistics.median(asked) * 1000:.1f} ms, largest {asked[-1]:.2f} s"
    )
    assert client.wrong == []


def test_the_guard_is_in_force(served):
    """Wherever the cluster comes from, and Serve's list of applications is not for everyone."""
    assert httpx.get(f"{served.host}/-/guard").json()["guard"]["max_header_bytes"] == 16_384
    assert httpx.get(f"{served.host}/-/routes").status_code == 404


def test_every_bad_request_is_refused_as_it_should_be(served):
    """Each gets its own 4xx, in the one form of errors."""
    wrong, slowest = {}, (0.0, "")
    for bad in bad_requests.BAD:
        start = time.perf_counter()
        answer = bad_requests.send(bad, host=served.host, url=served.url, headers={"x-api-key": SECRETS["good"]})
        slowest = max(slowest, (time.perf_counter() - start, bad.name))
        if answer.status_code not in bad.statuses:
            wrong[bad.name] = answer.status_code, answer.text[:300]
        elif answer.headers["content-type"] == "application/json":
            body = answer.json()
            assert (body["error"] if isinstance(body["error"], dict) else body)["code"], bad.name
    print(f"\n{len(bad_requests.BAD)} bad requests, the slowest {slowest[1]!r} in {slowest[0]:.2f} s")
    assert wrong == {}


def test_bytes_that_are_hardly_http_are_refused(served):
    """By a 4xx or a closed connection, and soon."""
    address = urlsplit(served.host)
    statuses = {
        name: bad_requests.raw_status(address.hostname, address.port, sent, timeout_s=20.0)
        for name, sent in bad_requests.RAW.items()
    }
    print(f"\n{statuses}")
    assert {name: status for name, status in statuses.items() if status and not 400 <= status < 500} == {}


def test_bad_calls_over_grpc_are_refused(served):
    """Bytes that are no message, truncated tensors, a message and metadata that are too large, and no gRPC at all."""
    good = forms.message(MIXED_ROWS, raw=True, name="mixed")
    truncated = forms.message(MIXED_ROWS, raw=True, name="mixed")
    truncated.raw_input_contents[0] = truncated.raw_input_contents[0][:-3]
    huge = forms.message(MIXED_ROWS, raw=True, name="mixed")
    huge.raw_input_contents[0] = bytes(50_000_000)
    codes = {}
    for name, request, more in (
        ("no message", b"\xff" * 1000, {}),
        ("truncated", truncated, {}),
        ("50 MB", huge, {}),
        ("forged key", good, {"x-api-key": SECRETS["good"][:-1] + "!"}),
        ("a large metadatum", good, {"x-large": "x" * 100_000}),
        ("a version of no number", good, {"x-raymlops-version": "x"}),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            forms.call(
                served.grpc_port, "ModelInfer", request, {**INDEX, **more}, timeout_s=TIMEOUT_S, host=served.address
            )
        codes[name] = caught.value.code().name
    for sent in (b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", bytes(100_000)):
        bad_requests.raw_status(served.address, served.grpc_port, sent, timeout_s=20.0)
    print(f"\n{codes}")
    assert not {"INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"} & set(codes.values())
    answered, _ = forms.call(served.grpc_port, "ModelInfer", good, INDEX, host=served.address)
    assert len(forms.rows_of_message(answered)) == len(MIXED_ROWS)


def test_forged_and_revoked_keys_are_refused(served):
    """Nothing tells them apart, and a revoked one is refused from the moment that its change is in force."""

    def status(secret: str) -> int:
        return httpx.post(f"{served.url}/predict", json={"rows": MIXED_ROWS}, headers={"x-api-key": secret}).status_code

    assert status(SECRETS["doomed"]) == 200
    forged = ("", "rk_", "rk_good_", SECRETS["good"][:-1], SECRETS["good"] + "x", "rk_" + "x" * 5000, "Bearer x")
    assert {status(secret) for secret in forged} == {401}
    start = time.perf_counter()
    served.change(keys=("good",), auth="keys")
    until_applied = time.perf_counter() - start
    while status(SECRETS["doomed"]) != 401:
        assert time.perf_counter() - start < 30
    print(f"\nrevoked: applied after {until_applied:.2f} s, refused after {time.perf_counter() - start:.2f} s")
    assert status(SECRETS["good"]) == 200
    served.change(keys=("good", "doomed"), auth="keys")


def test_replayed_feedback_is_taken_and_changes_nothing(served):
    """The same label twenty times is accepted each time: which of them counts is decided when they are read."""
    headers = {"x-api-key": SECRETS["good"]}
    given = httpx.post(f"{served.url}/predict", json={"rows": MIXED_ROWS}, headers=headers).headers["x-request-id"]
    body = {"labels": [{"request_id": given, "row": 0, "label": 1.0}]}
    with httpx.Client(headers=headers, timeout=TIMEOUT_S) as client:
        answers = [client.post(f"{served.url}/feedback", json=body) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {202}


def test_two_hundred_clients_that_trickle_hurt_nobody(served, good_client):
    """Half of them within their headers, half within their body: all are cut off, and the good one is answered."""
    address = urlsplit(served.host)
    body = json.dumps({"rows": MIXED_ROWS}).encode()

    async def trickle(kind: int) -> tuple[str, float]:
        start = time.monotonic()
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        line = b"POST /models/mixed/predict HTTP/1.1\r\nhost: localhost\r\n"
        if kind:
            head = line + b"x-api-key: %s\r\ncontent-length: %d\r\n\r\n" % (SECRETS["good"].encode(), len(body))
            writer.write(head)
            rest = body
        else:
            rest = line + b"x-slow: " + b"x" * 10_000
        closed = asyncio.create_task(reader.read(65536))
        try:
            for place in range(len(rest)):
                writer.write(rest[place : place + 1])
                await writer.drain()
                done, _ = await asyncio.wait({closed}, timeout=1.0)
                if done:
                    break
            answer = await closed
        except ConnectionError:
            answer = b""
        writer.close()
        return answer[9:12].decode() or "closed", time.monotonic() - start

    async def together() -> list[tuple[str, float]]:
        async with asyncio.timeout(60):
            return await asyncio.gather(*(trickle(index % 2) for index in range(200)))

    ends = asyncio.run(together())
    for kind, name in enumerate(("headers", "body")):
        answers = sorted({answer for answer, _ in ends[kind::2]})
        print(
            f"\n{name}: {answers}, after {min(ends[kind::2], key=lambda end: end[1])[1]:.1f} to "
            f"{max(ends[kind::2], key=lambda end: end[1])[1]:.1f} s"
        )
    assert {answer for answer, _ in ends} <= {"408", "400", "closed"}
