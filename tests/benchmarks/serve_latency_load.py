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

    def __init__(self, request: bytes, latencies: list[float], until: float) -> None:
        self.request = request
        self.latencies = latencies
        self.until = until
        self.buffer = b""
        self.body = b""
        self.done = asyncio.get_running_loop().create_future()

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
        length = _LENGTH.search(buffer, 0, end)
        if length is None or not buffer.startswith(b"HTTP/1.1 200"):
            self.fail(f"got {buffer[:300]!r}")
            return
        if len(buffer) < end + 4 + int(length[1]):
            return
        now = time.perf_counter()
        self.body, self.buffer = buffer[end + 4 :], b""
        self.latencies.append(now - self.sent)
        if now < self.until:
            self.send()
        else:
            self.transport.close()

    def fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))
        self.transport.close()

    def connection_lost(self, error) -> None:
        if not self.done.done():
            if self.until and time.perf_counter() < self.until:
                self.done.set_exception(RuntimeError(f"the server closed a connection: {error!r}"))
            else:
                self.done.set_result(None)


async def once(target: Target) -> float:
    """Return the number that one request is answered with.

    Raises:
        OSError, RuntimeError: nobody listens, or the answer is none.
    """
    loop = asyncio.get_running_loop()
    connection = Connection(target.request(), [], 0.0)
    await loop.create_connection(lambda: connection, HOST, target.port)
    async with asyncio.timeout(30):
        await connection.done
    found = _Y.search(connection.body)
    if found is None:
        raise RuntimeError(f"no number in {connection.body[:300]!r}")
    return float(found[1])


async def load(target: Target, *, connections: int, seconds: float) -> Figures:
    """Send for some seconds over some connections."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    request = target.request()
    start, worked = time.perf_counter(), time.process_time()
    clients = [Connection(request, latencies, start + seconds) for _ in range(connections)]
    await asyncio.gather(*(loop.create_connection(lambda c=client: c, HOST, target.port) for client in clients))
    await asyncio.gather(*(client.done for client in clients))
    elapsed, worked = time.perf_counter() - start, time.process_time() - worked
    p50, p99 = (float(value) * 1e3 for value in np.percentile(latencies, [50, 99]))
    return Figures(len(latencies), len(latencies) / elapsed, p50, p99, worked / elapsed)
