"""The load of ``serve_latency``: keep-alive connections that send one request again and again, from one event loop.

Owns the client and what it measures. It reads as little of an answer as it can, so that it is rarely what limits a
server, and says how much of a core it took itself.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import NamedTuple

import numpy as np

HOST = "127.0.0.1"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_Y = re.compile(rb'"y": *(-?[0-9.]+(?:[eE][-+]?\d+)?)')


class Figures(NamedTuple):
    """One round of load."""

    requests: int
    per_s: float
    p50_ms: float
    p99_ms: float
    client: float
    """Cores that this client took, 0 to 1."""
    failed: int
    """Answers of another status than 200, and connections that were closed instead of answered."""


class Target(NamedTuple):
    """Where requests go, and what they are."""

    port: int
    path: str
    body: object

    def request(self) -> bytes:
        content = json.dumps(self.body).encode()
        headers = [f"host: {HOST}", "content-type: application/json", f"content-length: {len(content)}"]
        return "\r\n".join([f"POST {self.path} HTTP/1.1", *headers, "", ""]).encode() + content


class Connection(asyncio.Protocol):
    """One keep-alive HTTP/1.1 connection that sends the next request when the answer to the last is complete."""

    def __init__(self, target: Target, request: bytes, until: float) -> None:
        self.target = target
        self.request = request
        self.until = until
        self.latencies: list[float] = []
        self.failures: list[str] = []
        self.buffer = b""
        self.body = b""
        self.done = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, HOST, self.target.port)
        except OSError as error:
            self.failures.append(str(error))
            self.done.set_result(None)

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer = buffer = self.buffer + data if self.buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(buffer, 0, end + 2)
        if length is None:
            self.transport.close()
            return
        if len(buffer) < end + 4 + int(length[1]):
            return
        now = time.perf_counter()
        self.buffer, self.body = b"", buffer[end + 4 :]
        if buffer.startswith(b"HTTP/1.1 200"):
            self.latencies.append(now - self.sent)
        else:
            self.failures.append(buffer[:400].decode(errors="replace"))
        if now < self.until:
            self.send()
        else:
            self.done.set_result(None)
            self.transport.close()

    def connection_lost(self, error) -> None:
        if self.done.done():
            return
        self.failures.append(f"closed instead of answered: {error!r}, {self.buffer[:200]!r}")
        self.buffer = b""
        if time.perf_counter() < self.until:
            self.reopening = asyncio.ensure_future(self.open())
        else:
            self.done.set_result(None)


async def once(target: Target) -> float:
    """Return the number that one request is answered with.

    Raises:
        OSError, RuntimeError, TimeoutError: nobody listens, or the answer is none.
    """
    connection = Connection(target, target.request(), 0.0)
    await connection.open()
    async with asyncio.timeout(30):
        await connection.done
    found = _Y.search(connection.body)
    if connection.failures or found is None:
        raise RuntimeError("; ".join(connection.failures) or f"no number in {connection.body[:300]!r}")
    return float(found[1])


async def load(target: Target, *, connections: int, seconds: float) -> Figures:
    """Send for some seconds over some connections.

    Raises:
        RuntimeError: not one request was answered.
    """
    start, worked = time.perf_counter(), time.process_time()
    request = target.request()
    clients = [Connection(target, request, start + seconds) for _ in range(connections)]
    await asyncio.gather(*(client.open() for client in clients))
    await asyncio.gather(*(client.done for client in clients))
    elapsed, worked = time.perf_counter() - start, time.process_time() - worked
    latencies = [latency for client in clients for latency in client.latencies]
    failures = [failure for client in clients for failure in client.failures]
    if not latencies:
        raise RuntimeError(f"{target.path}: no answer, but {failures[:3]}")
    p50, p99 = (float(value) * 1e3 for value in np.percentile(latencies, [50, 99]))
    return Figures(len(latencies), len(latencies) / elapsed, p50, p99, worked / elapsed, len(failures))
