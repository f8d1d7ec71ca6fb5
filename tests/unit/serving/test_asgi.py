"""Bodies of requests, as a replica takes them over."""

from __future__ import annotations

import asyncio

import pytest

from raymlops.serving.arrival import ARRIVED, stamp
from raymlops.serving.asgi import PIECE_BYTES, BodyReader, Pieces


@pytest.mark.parametrize(("more", "at_once"), [({ARRIVED: stamp()}, 2), ({}, 5)])
def test_large_bodies_that_are_complete_are_handed_over_two_at_a_time(more, at_once):
    """Others may be a slow client's, for whom nobody waits."""
    reading, most, going = 0, 0, asyncio.Event()

    async def receive():
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await going.wait()
        reading -= 1
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def scenario():
        reader = BodyReader()
        tasks = [asyncio.create_task(reader.read({**more}, receive, {}, limit=10)) for _ in range(5)]
        for _ in range(3):
            await asyncio.sleep(0)
        going.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(scenario()) == [b"{}"] * 5
    assert most == at_once


def test_a_body_is_kept_in_pieces_that_are_neither_tiny_nor_copied_again():
    """Two bytes at a time they are gathered; a large chunk stays what it is, behind what came before it."""
    body = Pieces()
    for _ in range(PIECE_BYTES):
        body.add(b"ab")
    large = bytes(PIECE_BYTES)
    for chunk in (b"x", large, large, b"y"):
        body.add(chunk)
    assert body.size == 4 * PIECE_BYTES + 2
    pieces = body.taken()
    assert [len(piece) for piece in pieces] == [PIECE_BYTES, PIECE_BYTES, 1, PIECE_BYTES, PIECE_BYTES, 1]
    assert pieces[3] is pieces[4] is large
    assert body.taken() == Pieces().taken() == [b""]
