"""Bodies parsed in threads of their own: in order, and in nobody else's way."""

from __future__ import annotations

import asyncio
import threading

import pytest

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


def test_bodies_wait_in_order_and_common_threads_stay_free():
    """However many there are; settings are changed meanwhile, and answers of the model are encoded before them."""

    async def scenario():
        parsing = ParsePool(threads=1)
        go, ran = threading.Event(), []
        running = [asyncio.create_task(parsing.run(go.wait))]
        running += [asyncio.create_task(parsing.run(ran.append, number)) for number in range(70)]
        await asyncio.sleep(0)
        running.append(asyncio.create_task(parsing.finish(ran.append, "answered")))
        assert await asyncio.to_thread(lambda: "changed") == "changed"
        go.set()
        await asyncio.gather(*running)
        assert ran == [0, "answered", *range(1, 70)]
        parsing.close()

    asyncio.run(scenario())


def test_a_body_that_nobody_waits_for_is_not_parsed():
    """Its caller's deadline passed while it waited, in the pool or for it; others are parsed in its place."""

    async def scenario():
        parsing = ParsePool(threads=1)
        go, begun, seen = threading.Event(), threading.Event(), []
        first = asyncio.create_task(parsing.run(lambda: (begun.set(), go.wait())))
        others = [asyncio.create_task(parsing.run(seen.append, number)) for number in range(4)]
        await asyncio.to_thread(begun.wait)
        left = [first, others[0], others[2]]
        for task in left:
            task.cancel()
        await asyncio.wait(left)
        go.set()
        await asyncio.gather(others[1], others[3])
        assert seen == [1, 3]
        parsing.close()

    asyncio.run(scenario())


def test_a_thread_that_its_caller_has_left_keeps_its_place():
    """Until it is free: no more bodies are taken than there are threads, and one; what is told then is told once."""

    async def scenario():
        parsing = ParsePool(threads=1)
        go, begun, told, seen = threading.Event(), threading.Event(), asyncio.Event(), []

        def left():
            seen.append("left")
            return told.set

        first = asyncio.create_task(parsing.hold(left, lambda: (begun.set(), go.wait())))
        await asyncio.to_thread(begun.wait)
        second = asyncio.create_task(parsing.hold(left, seen.append, "never"))
        for task in (first, second):  # of which the second waits in the pool
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([first, second])
        assert (seen, told.is_set()) == (["left"], False)
        third = asyncio.create_task(parsing.run(seen.append, "third"))
        fourth = asyncio.create_task(parsing.run(seen.append, "fourth"))
        await asyncio.sleep(0)
        assert parsing._places.locked()
        go.set()
        await asyncio.gather(third, fourth)
        await told.wait()
        assert seen == ["left", "third", "fourth"]
        assert await parsing.hold(left, divmod, 7, 2) == (3, 1)
        assert seen[-1] == "fourth"
        parsing.close()

    asyncio.run(scenario())


def test_a_body_that_no_thread_takes_keeps_no_place():
    """Each is told the same, however many there are."""

    async def scenario():
        parsing = ParsePool(threads=1)
        parsing.close()
        for _ in range(3):
            with pytest.raises(RuntimeError):
                await parsing.run(divmod, 7, 2)

    asyncio.run(scenario())
