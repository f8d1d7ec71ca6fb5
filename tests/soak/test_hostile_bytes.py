"""Bytes that are meant to hurt, to a real endpoint behind either proxy, beside 50 requests a second of a good client.

Prints what each attack was answered, and the good client's latencies beside it. Takes about three minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import time
from collections import Counter
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from endpoints import NAME, endpoint
from serving_bundles import MIXED_ROWS

pytestmark = pytest.mark.soak

RATE = 50.0
ATTACK_S = 15.0
NO_ANSWER_S = 60.0
KEPT_S = 3.0
"""How long a connection may have been idle that is used again: the server closes it after five."""
GOOD = json.dumps({"rows": MIXED_ROWS}).encode()
PREDICT, FEEDBACK, INFER = (
    f"/models/{NAME}/predict",
    f"/models/{NAME}/feedback",
    f"/models/{NAME}/v2/models/{NAME}/infer",
)
BY_INDEX = f"/v2/models/{NAME}/infer"


@pytest.fixture(scope="module", params=["python", "haproxy"])
def served(request):
    with endpoint(request.param) as running:
        asyncio.run(settled(running))
        yield running


class Wire:
    """One connection, as a hand would use it."""

    def __init__(self, reader, writer) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, served):
        address = urlsplit(served.host)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def send(self, *pieces: bytes) -> None:
        """Send them as far as anybody takes them."""
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                self._writer.write(piece)
                await self._writer.drain()

    async def answer(self) -> tuple[int, dict]:
        """Return status and body of the next answer."""
        async with asyncio.timeout(NO_ANSWER_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            body = await self._reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        return int(head.split(b" ", 2)[1]), json.loads(body)

    async def rest(self, seconds: float) -> bytes:
        """Return what else comes until the connection ends, or for so long."""
        rest = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(seconds):
                while piece := await self._reader.read(65536):
                    rest += piece
        return rest


def post(path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json", *headers)
    return "".join(f"{line}\r\n" for line in (*lines, f"content-length: {len(body)}", "")).encode() + body


async def good_requests(served, ended: asyncio.Event) -> list[tuple[float, object]]:
    """Ask at a fixed rate, however long the answers take; return the seconds of each and what was wrong with it."""
    idle: list[tuple[float, Wire, contextlib.AsyncExitStack]] = []
    done: list[tuple[float, object]] = []

    async def one(due: float) -> None:
        wrong: object = None
        try:
            if idle and time.monotonic() - idle[-1][0] < KEPT_S:
                _, wire, stack = idle.pop()
            else:
                stack = contextlib.AsyncExitStack()
                wire = await stack.enter_async_context(Wire.to(served))
            await wire.send(post(PREDICT, GOOD))
            status, body = await wire.answer()
            wrong = None if status == 200 and len(body["outputs"]) == len(MIXED_ROWS) else (status, body)
            idle.append((time.monotonic(), wire, stack))
        except Exception as error:
            wrong = repr(error)
        done.append((time.monotonic() - due, wrong))

    async with asyncio.TaskGroup() as group:
        start, number = time.monotonic(), 0
        while not ended.is_set():
            due = start + number / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(due))
            number += 1
    for _, _, stack in idle:
        await stack.aclose()
    return done


def beside(served, capsys, name, attack):
    """Run an attack beside the good client, print how both fared, and return what the attack gave."""

    async def both():
        ended = asyncio.Event()
        good = asyncio.create_task(good_requests(served, ended))
        await asyncio.sleep(1.0)
        try:
            given = await attack()
        finally:
            ended.set()
        return given, await good

    given, done = asyncio.run(both())
    milliseconds = [seconds * 1e3 for seconds, _ in done]
    p50, p99 = np.percentile(milliseconds, [50, 99])
    wrong = [wrong for _, wrong in done if wrong is not None]
    with capsys.disabled():
        print(
            f"\n{name}: {given}\n  beside it {len(done)} good requests, {len(wrong)} failed, "
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, largest {max(milliseconds):.0f} ms"
        )
    assert wrong == []
    return given


def keys_without_end(start: bytes, end: bytes) -> bytes:
    """Return almost 8,000,000 bytes of distinct keys in one object, the last one of them given twice."""
    number = (7_999_000 - len(start) - len(end)) // 12
    keys = [b'"%07x":1' % index for index in range(number)]
    return start + b",".join([*keys, keys[-1]]) + end


@pytest.fixture(scope="module")
def attacks():
    return {
        PREDICT: keys_without_end(b'{"rows":[{', b"}]}"),
        FEEDBACK: keys_without_end(b'{"labels":[{', b"}]}"),
        INFER: keys_without_end(b'{"inputs":[],"parameters":{', b"}}"),
        BY_INDEX: keys_without_end(b'{"inputs":[],"parameters":{', b"}}"),
    }


async def settled(served, answers: int = 250) -> None:
    """Return once a connection lasts for so many answers: HAProxy's new configs close all, one soon after the start."""
    got = 0
    while got < answers:
        got = 0
        async with Wire.to(served) as wire:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while got < answers:
                    await wire.send(post(PREDICT, GOOD))
                    await wire.answer()
                    got += 1


def test_without_an_attack(served, capsys):
    """What the good client gets otherwise."""
    beside(served, capsys, "nothing", lambda: asyncio.sleep(ATTACK_S))


def test_eight_megabytes_of_keys(served, capsys, attacks):
    """On each way in, one after the other for as long as it takes: refused in less than seconds.

    Neither rows nor labels have so many values, which is found before the body is parsed.
    """

    async def attack():
        given, slowest = Counter(), 0.0
        over = time.monotonic() + ATTACK_S
        while time.monotonic() < over:
            for path, body in attacks.items():
                begun = time.monotonic()
                async with Wire.to(served) as wire:
                    await wire.send(post(path, body))
                    status, answer = await wire.answer()
                facts = answer["error"] if isinstance(answer["error"], dict) else answer
                given[path.removeprefix(f"/models/{NAME}"), status, facts["code"]] += 1
                slowest = max(slowest, time.monotonic() - begun)
        return dict(given), f"slowest {slowest:.2f} s"

    given, _ = beside(served, capsys, "8 MB of keys", attack)
    assert {(status, code) for _, status, code in given} == {(413, "too_many_rows")}


def memory() -> dict[str, int]:
    """Return the MiB of Serve's proxies and replicas, the largest of each."""
    found = Counter()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            name = process.cmdline()[0] if process.cmdline() else ""
            kind = next((kind for kind in ("ServeReplica", "ProxyActor") if kind in name), None)
            if kind:
                found[kind] = max(found[kind], process.memory_info().rss >> 20)
    return dict(found)


def test_sixty_four_hostile_connections(served, capsys, attacks):
    """All at once: slow headers, slow bodies, 8 MB of keys, brackets without end, answers that nobody reads."""
    over = 0.0

    async def repeated(*, pause_s: float, pieces: list[bytes], reads: bool) -> None:
        while time.monotonic() < over:
            async with Wire.to(served) as wire:
                for piece in pieces:
                    await wire.send(piece)
                    await asyncio.sleep(pause_s)
                if reads:
                    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                        await wire.answer()
                else:
                    await asyncio.sleep(max(0.0, over - time.monotonic()))

    slow_headers = [f"POST {PREDICT} HTTP/1.1\r\n".encode(), *(b"x-a: b\r\n" for _ in range(30))]
    slow_body = [post(PREDICT, bytes(64)).removesuffix(bytes(64)), *(b" " for _ in range(30))]
    deep = [post(PREDICT, b'{"rows":' + b"[" * 4_000_000)]
    unread = [post(PREDICT, json.dumps({"rows": MIXED_ROWS * (2000 // len(MIXED_ROWS))}).encode())] * 20
    keys = [post(path, body) for path, body in attacks.items()]

    async def attack():
        nonlocal over
        over = time.monotonic() + ATTACK_S
        kinds = [
            *[repeated(pause_s=0.5, pieces=slow_headers, reads=False) for _ in range(16)],
            *[repeated(pause_s=0.5, pieces=slow_body, reads=False) for _ in range(16)],
            *[repeated(pause_s=0.0, pieces=[keys[number % 4]], reads=True) for number in range(16)],
            *[repeated(pause_s=0.0, pieces=deep, reads=True) for _ in range(8)],
            *[repeated(pause_s=0.1, pieces=unread, reads=False) for _ in range(8)],
        ]
        before = memory()
        await asyncio.gather(*kinds)
        return f"{len(kinds)} connections, MiB before {before}, after {memory()}"

    beside(served, capsys, "64 hostile connections", attack)


def test_bodies_that_never_end(served, capsys):
    """On a hundred connections in chunks, half of them as fast as they are taken: each is refused, and closed."""
    head = b"POST %s HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"

    async def endless(number: int) -> int | str:
        path = (PREDICT, FEEDBACK, INFER, BY_INDEX)[number // 2 % 4]
        size, pause = ((64_000, 0.0), (1_000, 0.5))[number % 2]
        chunk = b"%x\r\n%s\r\n" % (size, bytes(size))
        async with Wire.to(served) as wire:
            await wire.send(head % path.encode())
            answer = asyncio.create_task(wire.answer())
            while not answer.done():
                await wire.send(chunk)
                await asyncio.wait({answer}, timeout=pause or 0.01)
            try:
                status, _ = await answer
            except (asyncio.IncompleteReadError, ConnectionError):
                return "closed"
            await wire.rest(NO_ANSWER_S)
            return status

    async def attack():
        begun = time.monotonic()
        given = Counter(await asyncio.gather(*(endless(number) for number in range(100))))
        return dict(given), f"after {time.monotonic() - begun:.1f} s"

    given, _ = beside(served, capsys, "100 endless bodies", attack)
    assert set(given) <= {408, 413, 503, 504, "closed"}
    assert {408, 413} <= set(given)


def test_an_offer_to_upgrade_with_a_late_second_request(served, capsys):
    """The late bytes are the body, refused as one; what they ask for is never answered, and curl gets its 200."""
    late = f"GET /models/{NAME}/readyz HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    offer = ("upgrade: h2c", "connection: Upgrade, HTTP2-Settings", "http2-settings: AAMAAABkAARAAAAAAAIAAAAA")
    head = post(PREDICT, late, *offer).removesuffix(late)

    async def attack():
        given = Counter()
        over = time.monotonic() + ATTACK_S
        while time.monotonic() < over:
            async with Wire.to(served) as wire:
                await wire.send(head)
                await asyncio.sleep(0.3)
                await wire.send(late)
                status, answer = await wire.answer()
                given[status, answer["error"]["code"], (await wire.rest(0.5)).count(b"HTTP/1.1")] += 1
            async with Wire.to(served) as wire:
                await wire.send(post(PREDICT, GOOD, *offer))
                status, answer = await wire.answer()
                given[status, len(answer["outputs"])] += 1
        return dict(given)

    given = beside(served, capsys, "upgrade with a late request", attack)
    assert set(given) == {(400, "not_json", 0), (200, len(MIXED_ROWS))}
    curl = shutil.which("curl")
    if curl is not None:
        command = [curl, "--http2", "-s", "-w", "%{http_code}", "-H", "content-type: application/json", "-d", "@-"]
        answer = subprocess.run([*command, f"{served.host}{PREDICT}"], input=GOOD, capture_output=True, check=True)
        assert answer.stdout.endswith(b"200")


def test_websockets_are_refused(served, capsys):
    """Anywhere, by 4xx in our form; Serve's list of routes is found by nobody."""
    ends = "upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

    async def attack():
        given = {}
        for path in ("/", "/models", "/v2", BY_INDEX, PREDICT, "/x", "/-/routes"):
            async with Wire.to(served) as wire:
                await wire.send(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n{ends}".encode())
                status, body = await wire.answer()
            error = body.get("error")
            given[path] = status, (error if isinstance(error, dict) else body).get("code")
        return given

    given = beside(served, capsys, "websockets", attack)
    assert given.pop("/-/routes") == (404, "not_found")
    assert set(given.values()) == {(400, "no_websocket")}
