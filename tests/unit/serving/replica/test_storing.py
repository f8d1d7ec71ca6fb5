"""Feedback that waits for the storage of labels leaves a replica's slots to predictions."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future

import pytest
from serving_fakes import PREFIX, ROW, make_front

from raymlops.serving.asgi import BODY
from raymlops.serving.refusal import Limits, Refusal
from raymlops.serving.replica.storing import Storing


def test_whoever_waits_beyond_a_few_waits_for_a_moment():
    """Two of three wait on; once the first has waited for that long, further ones are refused at once."""

    async def scenario():
        storing, futures = Storing(quick_s=0.01), [Future() for _ in range(3)]
        tasks = [asyncio.create_task(storing.wait(future, most=2)) for future in futures]
        with pytest.raises(Refusal) as late:
            await tasks[2]
        with pytest.raises(Refusal) as full:
            storing.require_room(2)
        storing.require_room(3)
        for future in futures[:2]:
            future.set_result(None)
        await asyncio.gather(*tasks[:2])
        storing.require_room(1)
        return late.value, full.value, futures[2].cancelled()

    late, full, cancelled = asyncio.run(scenario())
    for refusal in (late, full):
        assert (refusal.status, refusal.code, refusal.retry_after_s) == (503, "storage_unavailable", 5.0)
    assert cancelled


def test_many_that_the_storage_takes_soon_are_stored():
    """A burst is no storage that hangs."""

    async def scenario():
        storing, futures = Storing(), [Future() for _ in range(9)]
        tasks = [asyncio.create_task(storing.wait(future, most=1)) for future in futures]
        await asyncio.sleep(0)
        storing.require_room(1)
        for future in futures:
            future.set_result(None)
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


class Hanging:
    """A storage of labels that never answers."""

    def add(self, labels, *, key_id=None, caller=None):
        return Future()


def test_predictions_are_answered_while_the_storage_hangs():
    """Of eight slots two wait for it; the third is refused before its body is read."""
    front = make_front(Limits(max_ongoing_requests=8))
    front.labels, front.storing = Hanging(), Storing(quick_s=0.0)

    async def ask(path, body):
        given = {} if body is None else {BODY: body}
        scope = {"type": "http", "method": "POST", "path": PREFIX + path, "root_path": PREFIX, "headers": [], **given}
        return (await front.reply(scope, None)).status

    async def scenario():
        label = b'{"labels": [{"request_id": "a", "row": 0, "label": 1}]}'
        waiting = [asyncio.create_task(ask("/feedback", label)) for _ in range(2)]
        await asyncio.sleep(0)
        refused = await ask("/feedback", None)
        answered = await ask("/predict", json.dumps({"rows": [ROW]}).encode())
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        return refused, answered

    assert asyncio.run(scenario()) == (503, 200)
