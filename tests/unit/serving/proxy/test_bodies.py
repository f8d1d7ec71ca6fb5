"""A body whose deadline passes while its process is stopped, on an event loop whose clock the test turns."""

from __future__ import annotations

import asyncio
import socket

import pytest

from raymlops.serving.proxy.bodies import Account, Body
from raymlops.serving.refusal import Refusal


class Loop(asyncio.SelectorEventLoop):
    """An event loop that wakes so many seconds later than it would."""

    ahead_s = 0.0

    def time(self):
        return super().time() + self.ahead_s


async def read(arrives):
    """Read a body of which the end comes while the loop is away for 20 s, ten beyond its deadline."""
    loop, complete = asyncio.get_running_loop(), asyncio.Event()
    ours, clients = socket.socketpair()

    async def receive():
        await complete.wait()
        return {"type": "http.request", "body": b"whole", "more_body": False}

    def wake():
        loop.remove_reader(ours)
        complete.set()

    def stop():
        if arrives:
            clients.send(b"x")
        loop.ahead_s = 20.0

    with ours, clients, Body(Account(), b"5") as body:
        loop.add_reader(ours, wake)
        loop.call_soon(stop)
        try:
            return await body.read(receive, model="m", limit=100, seconds=10.0, pause_s=0.05)
        finally:
            loop.remove_reader(ours)


@pytest.mark.parametrize("arrives", [True, False])
def test_a_process_that_was_stopped_does_not_blame_the_client(arrives):
    """What came meanwhile is read; who sent nothing is still too slow."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        if arrives:
            assert runner.run(read(arrives)) == [b"whole"]
        else:
            with pytest.raises(Refusal, match="not complete within 10 s"):
                runner.run(read(arrives))
