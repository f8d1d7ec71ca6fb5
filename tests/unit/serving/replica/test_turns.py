"""Large requests take turns beside small ones, and rest."""

from __future__ import annotations

import asyncio

import pytest

from raymlops.serving.refusal import Refusal
from raymlops.serving.replica.turns import BESIDE_S, HOLD_S, MOST_REST_S, MOST_RESTS, OFTEN_S, Turns, rest_s


class Clock:
    """The time, which a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("took_s", "waiting", "rest"),
    [
        (0.004, 0, 0.0),
        (0.004, 1, 0.004),
        (0.004, 2, 0.008),
        (0.004, 7, 0.004 * MOST_RESTS),
        (4.0, 1, MOST_REST_S),
        (0.001, 7, 0.0),
    ],
)
def test_the_rest_after_a_turn_is_longer_the_more_wait(took_s, waiting, rest):
    """As long as the turn, for each; one that comes alone waits for nothing, and nobody after a short one."""
    assert rest_s(took_s, waiting=waiting) == pytest.approx(rest)


def test_beside_small_ones_there_is_one_at_a_time_and_a_rest_after_it(monkeypatch):
    """The second begins once the first one has ended and the rest is over; the third came last."""
    clock = Clock()

    async def scenario():
        rests = []
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda *given: rests.append(given))
        turns = Turns(clock=clock)
        turns.note_small()
        first = await turns.take()
        second, third = [asyncio.create_task(turns.take()) for _ in range(2)]
        await settle()
        clock.now += 0.005
        first.end()
        first.end()
        await settle()
        ((rest, over),) = rests
        assert (rest, second.done()) == (pytest.approx(0.01), False)
        over()
        await settle()
        assert (second.done(), third.done()) == (True, False)
        third.cancel()

    asyncio.run(scenario())


def test_once_small_ones_stop_all_that_wait_go_on_in_order():
    """However long the turn before them lasts, and nobody who comes then is earlier."""
    clock = Clock()
    began = []

    async def scenario():
        turns = Turns(clock=clock)

        async def large(name):
            began.append((name, await turns.take()))

        turns.note_small()
        clock.now += BESIDE_S - 0.01
        assert await turns.take() is not None
        large_ones = [asyncio.create_task(large(name)) for name in "ab"]
        await settle()
        assert began == []
        clock.now += 0.02
        await asyncio.gather(*large_ones, large("c"))

    asyncio.run(scenario())
    assert began == [("a", None), ("b", None), ("c", None)]


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


def test_a_turn_lasts_on_while_a_quick_model_has_its_rows_where_small_ones_come_all_the_time(monkeypatch):
    """Until it is answered, or for 20 ms; the rest is by what came before. Small ones now and then let it end."""
    clock = Clock()

    async def scenario():
        later = []
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda *given: later.append(given))
        turns = Turns(clock=clock)
        turns.note_small()
        first = await turns.take()
        second = asyncio.create_task(turns.take())
        await settle()
        clock.now += 0.005
        first.queue()
        ((held_s, over),) = later
        await settle()
        assert (held_s, second.done()) == (HOLD_S, False)
        clock.now += 0.01
        over()
        (_, (rest, _)) = later
        assert rest == pytest.approx(0.005)
        turns._free.set()
        (await second).end()
        turns._free.set()
        clock.now += 2 * OFTEN_S
        third = await turns.take()
        third.queue()
        assert len(later) == 2
        assert turns._free.is_set()

    asyncio.run(scenario())
