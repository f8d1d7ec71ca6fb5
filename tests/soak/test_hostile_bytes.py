"""Bytes that are meant to hurt, to a real endpoint behind either proxy, beside 50 requests a second of a good client.

The attackers run in a process of their own, in windows with and without them by turns, so that whatever else the
machine does is in both. Prints what each attack was answered, the good client's latencies and the memory of the
processes that accept and answer. Takes about five minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import grpc
import hostile_load
import numpy as np
import psutil
import pytest
from asking_forms import message
from endpoints import NAME, endpoint
from hostile_load import NO_ANSWER_S, Wire, chunked, post
from serving_bundles import MIXED_ROWS

pytestmark = pytest.mark.soak

RATE, BESIDE_RATE = 50.0, 5.0
"""Requests a second; and of gRPC calls and of the proxy's own health, each."""
ATTACK_S = 12.0
KEPT_S = 3.0
"""How long a connection may have been idle that is used again: the server closes it after five."""
MOST_MIB = 700
"""Memory that a process may grow by: what it may hold of bodies and of answers, and what it takes to parse two."""
GOOD = json.dumps({"rows": MIXED_ROWS}).encode()
MANY = json.dumps({"rows": MIXED_ROWS * (2000 // len(MIXED_ROWS))})
PREDICT, FEEDBACK, INFER = (
    f"/models/{NAME}/predict",
    f"/models/{NAME}/feedback",
    f"/models/{NAME}/v2/models/{NAME}/infer",
)
BY_INDEX = f"/v2/models/{NAME}/infer"
HEALTH = b"GET /-/healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
SIXTY_FOUR = {"slow_headers": 16, "slow_body": 16, "keys": 16, "deep": 8, "unread": 8}


@pytest.fixture(scope="module", params=["python", "haproxy"])
def served(request):
    with endpoint(request.param) as running:
        asyncio.run(settled(running))
        yield running


@dataclass
class Asked:
    """What a good client got: seconds of each kind of request, and what was wrong with some."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"predict": [], "grpc": [], "health": []})
    wrong: list[object] = field(default_factory=list)

    def percentile(self, kind: str, percent: float) -> float:
        """Return it in milliseconds."""
        return float(np.percentile(self.seconds[kind], percent) * 1e3)

    def __str__(self) -> str:
        each = [
            f"{kind} {len(seconds)}: p50 {self.percentile(kind, 50):.1f} ms, p99 {self.percentile(kind, 99):.1f} ms, "
            f"largest {max(seconds) * 1e3:.0f} ms"
            for kind, seconds in self.seconds.items()
            if seconds
        ]
        return f"{len(self.wrong)} failed; " + "; ".join(each)


async def good_requests(served, ended: asyncio.Event, asked: Asked) -> None:
    """Ask at fixed rates, however long the answers take."""
    idle: list[tuple[float, Wire, contextlib.AsyncExitStack]] = []
    call = message(MIXED_ROWS, raw=True, name=NAME).SerializeToString()

    async def predict() -> object:
        if idle and time.monotonic() - idle[-1][0] < KEPT_S:
            _, wire, stack = idle.pop()
        else:
            stack = contextlib.AsyncExitStack()
            wire = await stack.enter_async_context(Wire.to(served.host))
        await wire.send(post(PREDICT, GOOD))
        status, body = await wire.answer()
        idle.append((time.monotonic(), wire, stack))
        return None if status == 200 and len(body["outputs"]) == len(MIXED_ROWS) else (status, body)

    async def by_grpc() -> object:
        answer = await ask_grpc(call, metadata=(("application", "raymlops"),), timeout=NO_ANSWER_S)
        return None if answer else "no answer"

    async def health() -> object:
        async with Wire.to(served.host) as wire:
            await wire.send(HEALTH)
            answer = await wire.rest(NO_ANSWER_S)
            return None if answer.startswith(b"HTTP/1.1 200") else ("health", answer)

    async def one(kind: str, ask, due: float) -> None:
        try:
            wrong = await ask()
        except Exception as error:
            wrong = kind, repr(error)
        asked.seconds[kind].append(time.monotonic() - due)
        if wrong is not None:
            asked.wrong.append(wrong)

    async def stream(kind: str, ask, rate: float) -> None:
        start, number = time.monotonic(), 0
        while not ended.is_set():
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(kind, ask, due))
            number += 1

    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        ask_grpc = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        async with asyncio.TaskGroup() as group:
            group.create_task(stream("predict", predict, RATE))
            group.create_task(stream("grpc", by_grpc, BESIDE_RATE))
            group.create_task(stream("health", health, BESIDE_RATE))
    for _, _, stack in idle:
        await stack.aclose()


class Processes:
    """The processes of Serve that accept and answer requests, and how much memory each has had at most."""

    def __init__(self) -> None:
        self.most: dict[int, int] = {}
        self.names: dict[int, str] = {}
        self._all: dict[int, psutil.Process] = {}
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                name = (process.cmdline() or [""])[0]
                kind = next((kind for kind in ("ServeReplica", "Proxy", "bin/haproxy") if kind in name), None)
                if kind:
                    self._all[process.pid], self.names[process.pid] = process, name.rpartition("/")[2]
        self.look()
        self.first = dict(self.most)

    def look(self) -> None:
        """Take the memory of all, in MiB; what Ray's object store shares with them is bounded by itself."""
        for pid, process in self._all.items():
            with contextlib.suppress(psutil.Error):
                memory = process.memory_info()
                self.most[pid] = max(self.most.get(pid, 0), (memory.rss - memory.shared) >> 20)

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            self.look()
            await asyncio.sleep(0.1)

    @property
    def grown(self) -> int:
        """Return by how many MiB one has grown at most."""
        return max(self.most[pid] - first for pid, first in self.first.items())

    def __str__(self) -> str:
        return ", ".join(f"{name} {self.first[pid]} to {self.most[pid]} MiB" for pid, name in self.names.items())


@contextlib.asynccontextmanager
async def hostile(served, kinds: dict[str, int], seconds: float):
    """Yield once so many connections of each kind have begun; leaving waits for them, and fills what is yielded."""
    load = {"host": served.host, "grpc_port": served.grpc_port, "model": NAME, "large_answer": MANY}
    pipe = subprocess.PIPE
    command = (sys.executable, hostile_load.__file__)
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=2**20)
    given: dict[str, dict[str, int]] = {}
    try:
        process.stdin.write(json.dumps({**load, "seconds": seconds, "kinds": kinds}).encode())
        process.stdin.close()
        assert await process.stdout.readline() == b"begun\n"
        yield given
        given.update(json.loads(await process.stdout.readline()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def attacked(served, capsys, kinds: dict[str, int], *, turns: int = 1, seconds: float = ATTACK_S):
    """Return what a good client got without and with attackers, by turns, what they got, and the processes."""
    processes = Processes()
    without, beside, given = Asked(), Asked(), Counter()

    async def window(asked: Asked, kinds: dict[str, int] | None) -> None:
        ended = asyncio.Event()
        async with hostile(served, kinds, seconds) if kinds else contextlib.nullcontext({}) as got:
            good = asyncio.create_task(good_requests(served, ended, asked))
            await asyncio.sleep(seconds)
            ended.set()
            await good
        for kind, counts in got.items():
            given.update({(kind, answer): count for answer, count in counts.items()})

    async def by_turns() -> None:
        watching = asyncio.create_task(processes.watch())
        for _ in range(turns):
            await window(without, None)
            await window(beside, kinds)
        watching.cancel()

    asyncio.run(by_turns())
    with capsys.disabled():
        print(f"\n{kinds}: {dict(given)}\n  without: {without}\n  beside:  {beside}\n  {processes}")
    assert (without.wrong, beside.wrong) == ([], [])
    assert Processes().names.keys() == processes.names.keys(), "a process was replaced"
    return without, beside, given, processes


async def settled(served, answers: int = 250) -> None:
    """Return once a connection lasts for so many answers: HAProxy's new configs close all, one soon after the start."""
    got = 0
    while got < answers:
        got = 0
        async with Wire.to(served.host) as wire:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while got < answers:
                    await wire.send(post(PREDICT, GOOD))
                    await wire.answer()
                    got += 1


def test_sixty_four_hostile_connections(served, capsys):
    """Slow headers, slow bodies, 8 MB of keys, brackets without end, answers that nobody reads: all at once."""
    without, beside, _, processes = attacked(served, capsys, SIXTY_FOUR, turns=3)
    ratio = beside.percentile("predict", 99) / without.percentile("predict", 99)
    with capsys.disabled():
        print(f"  p99 beside them is {ratio:.2f} times that without")
    assert ratio <= 3.0
    assert processes.grown < MOST_MIB


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"keys": 8}, {"413 too_many_rows"}),
        ({"quotes": 8}, {"413 too_many_rows", "400 not_json"}),
        ({"whitespace": 8}, {"413 body_too_large"}),
        ({"trailers": 8}, {"431 headers_too_large"}),
        ({"websocket": 8}, {"400 no_websocket"}),
        ({"grpc_partial": 4}, set()),
        ({"grpc_bomb": 4}, set()),
        ({"grpc_slow": 4}, set()),
        ({"grpc_fields": 8}, set()),
        ({"unread": 8}, set()),
    ],
)
def test_one_kind_alone(served, capsys, kinds, expected):
    """Each is refused, as far as it is answered."""
    _, _, given, processes = attacked(served, capsys, kinds)
    assert processes.grown < MOST_MIB
    if expected:
        answers = {answer for _, answer in given if answer[0].isdigit() and not answer.startswith("503")}
        assert answers
        assert answers <= expected


def beside(served, capsys, name, attack):
    """Run an attack from this process beside the good client, print how both fared, and return what it gave."""
    asked = Asked()

    async def both():
        ended = asyncio.Event()
        good = asyncio.create_task(good_requests(served, ended, asked))
        try:
            return await attack()
        finally:
            ended.set()
            await good

    given = asyncio.run(both())
    with capsys.disabled():
        print(f"\n{name}: {given}\n  beside it: {asked}")
    assert asked.wrong == []
    return given


def test_bodies_that_never_end(served, capsys):
    """On a hundred connections in chunks, half of them as fast as they are taken: each is refused, and closed."""

    async def endless(number: int) -> int | str:
        path = (PREDICT, FEEDBACK, INFER, BY_INDEX)[number // 2 % 4]
        size, pause = ((64_000, 0.0), (1_000, 0.5))[number % 2]
        chunk = b"%x\r\n%s\r\n" % (size, bytes(size))
        async with Wire.to(served.host) as wire:
            await wire.send(chunked(path))
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
            async with Wire.to(served.host) as wire:
                await wire.send(head)
                await asyncio.sleep(0.3)
                await wire.send(late)
                status, answer = await wire.answer()
                given[status, answer["error"]["code"], (await wire.rest(0.5)).count(b"HTTP/1.1")] += 1
            async with Wire.to(served.host) as wire:
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
            async with Wire.to(served.host) as wire:
                await wire.send(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n{ends}".encode())
                status, body = await wire.answer()
            error = body.get("error")
            given[path] = status, (error if isinstance(error, dict) else body).get("code")
        return given

    given = beside(served, capsys, "websockets", attack)
    assert given.pop("/-/routes") == (404, "not_found")
    assert set(given.values()) == {(400, "no_websocket")}
