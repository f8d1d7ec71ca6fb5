"""An endpoint behind HAProxy at a rate that it can bear, and at three times what it can.

Prints latencies and statuses of each phase. The load comes from one process with raw connections, which costs less than
what it asks. Takes about three minutes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import numpy as np
import pytest
from local_ray import local_ray
from serve_apply import apply
from serve_proxy import start_proxy
from serving_bundles import scale_bundle

from raymlops.serving.control.rest_api import ServeApi
from raymlops.state.store import Deployment, Desired

pytestmark = pytest.mark.soak

BODY = json.dumps({"rows": [{"a": 1.0, "b": 2.0}]}).encode()
BUSY_ROWS = 5000
"""Rows of one request that keep a replica busy for some milliseconds, so that three times its capacity is not many."""
PHASE_S = 60.0
NO_ANSWER_S = 40.0
"""More than the deadline of a request."""


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """Serve one version behind HAProxy, with a queue that is full soon, and return the port."""
    with local_ray(tmp_path_factory.mktemp("home"), proxy="haproxy") as connection:
        port = start_proxy()
        token = None
        if connection.token_path:
            with open(connection.token_path, encoding="utf-8") as file:  # noqa: PTH123 - a path as text
                token = file.read().strip()
        bundle = scale_bundle(tmp_path_factory.mktemp("bundles"), factor=2.0)
        settings = {"max_replicas": 1, "cpus_per_replica": 0.5, "max_ongoing_requests": 32, "max_queued_requests": 64}
        champion = Deployment("scale", 1, bundle, "run", "champion", settings)
        apply(Desired((champion,)), api=ServeApi(connection.dashboard_url, token), wait_s=120)
        yield port


class Caller:
    """One kept connection to the endpoint."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader = self._writer = None

    async def ask(self, body: bytes) -> int:
        """Return the status of one answer; 0 where the connection broke or nothing came."""
        try:
            async with asyncio.timeout(NO_ANSWER_S):
                return await self._ask(body)
        except (OSError, asyncio.IncompleteReadError, IndexError):
            self.close()
            return 0

    async def _ask(self, body: bytes) -> int:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"POST /models/scale/predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
        await self._reader.readexactly(length)
        if b"connection: close" in answer:
            self.close()
        return int(answer.split(b" ", 2)[1])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


async def steady(port: int, *, rate: float, seconds: float, body: bytes = BODY) -> list[tuple[float, int, float]]:
    """Ask at a fixed rate, however long the answers take; return (when, status, seconds) of each."""
    idle: list[Caller] = []
    done: list[tuple[float, int, float]] = []
    tasks: set[asyncio.Task] = set()

    async def one(due: float) -> None:
        caller = idle.pop() if idle else Caller(port)
        status = await caller.ask(body)
        done.append((due, status, time.monotonic() - due))  # from when it was due: waiting to be sent counts
        idle.append(caller)

    start = time.monotonic()
    for number in range(int(rate * seconds)):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    for caller in idle:
        caller.close()
    return done


def line(name: str, done: list[tuple[float, int, float]]) -> str:
    good = [seconds * 1e3 for _, status, seconds in done if status == 200]
    p50, p99 = np.percentile(good, [50, 99]) if good else (float("nan"),) * 2
    statuses = dict(sorted(Counter(status for _, status, _ in done).items()))
    return f"{name:34} {len(done):6} asked  p50 {p50:7.1f} ms  p99 {p99:7.1f} ms  {statuses}"


async def capacity(port: int, *, seconds: float = 5.0) -> float:
    """Return how many busy requests a second are answered when so few callers ask that none is turned away."""
    over = time.monotonic() + seconds
    body = busy_body()

    async def call() -> int:
        caller, answered = Caller(port), 0
        while time.monotonic() < over:
            answered += await caller.ask(body) == 200
        caller.close()
        return answered

    return sum(await asyncio.gather(*(call() for _ in range(3)))) / seconds


def busy_body() -> bytes:
    return json.dumps({"rows": [{"a": 1.0, "b": 2.0}] * BUSY_ROWS}).encode()


def test_300_requests_a_second_are_answered(port, capsys):
    """For a minute, every one with 200."""
    asyncio.run(steady(port, rate=100, seconds=3))
    done = asyncio.run(steady(port, rate=300, seconds=PHASE_S))
    with capsys.disabled():
        print("\n" + line("300 requests a second", done))
    assert {status for _, status, _ in done} == {200}


def test_three_times_too_much_is_turned_away_and_forgotten(port, capsys):
    """For a minute only 200, 429 and 503; afterwards the latency is what it was before."""
    able = asyncio.run(capacity(port))
    before = asyncio.run(steady(port, rate=100, seconds=5))
    during = asyncio.run(steady(port, rate=3 * able, seconds=PHASE_S, body=busy_body()))
    after = asyncio.run(steady(port, rate=100, seconds=15))
    start = after[0][0]
    with capsys.disabled():
        print(f"\ncapacity: {able:.0f} requests of {BUSY_ROWS} rows a second")
        print(line("before, 100 small a second", before))
        print(line("three times too much", during))
        print(line("after: first 5 s", [one for one in after if one[0] - start < 5]))
        print(line("after: from 10 s on", [one for one in after if one[0] - start >= 10]))
    assert {status for _, status, _ in during} <= {200, 429, 503}
    assert {status for when, status, _ in after if when - start >= 10} == {200}
