"""Large requests take turns beside small ones, and rest."""

from __future__ import annotations

import asyncio

import pytest

from raymlops.serving.refusal import Refusal
from raymlops.serving.replica.turns import BESIDE_S, MOST_REST, Turns


class Clock:
    """The time, which a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("waiting", "rest_s"), [(0, 0.0), (1, 0.25), (2, 0.5), (7, 0.25 * MOST_REST)])
def test_the_rest_after_a_turn_is_longer_the_more_wait(waiting, rest_s):
    """It is as long as the turn was, here a quarter of a second, for each; one that comes alone waits for nothing."""
    clock = Clock()

    async def scenario():
        turns = Turns(clock=clock)
        turns.note_small()
        first = await turns.take()
        others = [asyncio.create_task(turns.take()) for _ in range(waiting)]
        await settle()
        clock.now += 0.25
        first.end()
        assert turns._rest_until == clock.now + rest_s
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run(scenario())


def test_beside_small_ones_there_is_one_at_a_time_and_a_rest_after_it():
    """The second begins once the first one has ended and as much time has passed as that took."""
    clock = Clock()

    async def scenario():
        turns = Turns(clock=clock)
        turns.note_small()
        first = await turns.take()
        second = asyncio.create_task(turns.take())
        await settle()
        assert not second.done()
        clock.now += 0.5
        first.end()
        first.end()
        clock.now += 0.5
        (await second).end()

    asyncio.run(scenario())


def test_without_small_ones_nobody_waits():
    """Nor once the last one came long ago."""
    clock = Clock()

    async def scenario():
        turns = Turns(clock=clock)
        assert [await turns.take(), await turns.take()] == [None, None]
        turns.note_small()
        clock.now += BESIDE_S + 0.1
        assert [await turns.take(), await turns.take()] == [None, None]

    asyncio.run(scenario())


def test_a_request_that_is_given_up_keeps_no_turn():
    """Neither while it waits for the one before it nor while it waits for the rest to end."""
    clock = Clock()

    async def scenario():
        turns = Turns(most=1, clock=clock)
        turns.note_small()
        first = await turns.take()
        second = asyncio.create_task(turns.take())
        await settle()
        with pytest.raises(Refusal) as full:
            await turns.take()
        assert (full.value.status, full.value.retry_after_s) == (503, 1.0)
        second.cancel()
        await asyncio.wait([second])
        third = asyncio.create_task(turns.take())
        await settle()
        clock.now += 60.0
        first.end()
        await settle()
        assert not third.done()
        third.cancel()
        await asyncio.wait([third])
        clock.now += 60.0
        turns.note_small()
        (await turns.take()).end()

    asyncio.run(scenario())
