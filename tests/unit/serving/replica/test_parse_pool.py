"""Bodies read in threads of their own: bounded, and in nobody else's way."""

from __future__ import annotations

import asyncio
import threading

import pytest

from raymlops.serving.refusal import Refusal
from raymlops.serving.replica.parse_pool import ParsePool


def test_what_a_function_gives_or_raises_comes_back():
    """With its arguments, from a thread."""

    async def scenario():
        parsing = ParsePool()
        assert await parsing.run(divmod, 7, 2) == (3, 1)
        assert await parsing.run(threading.current_thread) is not threading.main_thread()
        with pytest.raises(ZeroDivisionError):
            await parsing.run(divmod, 1, 0)
        parsing.close()

    asyncio.run(scenario())


def test_a_full_pool_refuses_and_common_threads_stay_free():
    """Two run, one waits, the fourth is told to come again; settings are changed meanwhile; then there is room."""

    async def scenario():
        parsing = ParsePool(threads=2, most=3)
        go = threading.Event()
        running = [asyncio.create_task(parsing.run(go.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as caught:
            await parsing.run(divmod, 7, 2)
        assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (503, "overloaded", 1.0)
        assert await asyncio.to_thread(lambda: "changed") == "changed"
        go.set()
        assert await asyncio.gather(*running) == [True, True, True]
        assert await parsing.run(divmod, 7, 2) == (3, 1)
        parsing.close()

    asyncio.run(scenario())


def test_a_body_that_nobody_waits_for_is_not_read():
    """Its caller's deadline passed while it waited; one that is being read keeps its place until it is done."""

    async def scenario():
        parsing = ParsePool(threads=1, most=2)
        go, begun, seen = threading.Event(), threading.Event(), []
        first = asyncio.create_task(parsing.run(lambda: (begun.set(), go.wait())))
        second = asyncio.create_task(parsing.run(seen.append, "second"))
        await asyncio.to_thread(begun.wait)
        first.cancel()
        second.cancel()
        await asyncio.wait([first, second])
        third = asyncio.create_task(parsing.run(seen.append, "third"))  # in the place of the second
        await asyncio.sleep(0)
        with pytest.raises(Refusal):
            await parsing.run(seen.append, "fourth")
        go.set()
        await third
        assert seen == ["third"]
        parsing.close()

    asyncio.run(scenario())


def test_a_body_that_no_thread_takes_keeps_no_place():
    """Each is told the same, however many there are; none is told that others wait."""

    async def scenario():
        parsing = ParsePool(most=1)
        parsing.close()
        for _ in range(2):
            with pytest.raises(RuntimeError):
                await parsing.run(divmod, 7, 2)

    asyncio.run(scenario())
