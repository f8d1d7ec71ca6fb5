"""Which version answers, what is counted of it, and that nothing beside the champion can touch a caller."""

from __future__ import annotations

import asyncio
import pickle
import threading
from base64 import b64encode
from concurrent.futures import Future
from hashlib import sha256

import httpx
import numpy as np
import orjson
import pytest
from serving_fakes import PREFIX, ROW, SIGNATURE, FakeModel, ask, front_of, make_front, predict

from raymlops.answer_loss import AnswerLoss
from raymlops.arrays import Column
from raymlops.errors import InvalidRowsError, RowProblem
from raymlops.images import png_files
from raymlops.predictions.labels import Label
from raymlops.serving.asgi import BODY
from raymlops.serving.auth import Access, KeyEntry
from raymlops.serving.refusal import Limits, Refusal
from raymlops.serving.replica.handler import MANY_IMAGES
from raymlops.serving.replica.parse_pool import ParsePool
from raymlops.serving.replica.shadows import largest_difference
from raymlops.serving.replica.turns import Turns
from raymlops.serving.settings import Settings
from raymlops.serving.traffic import Share, Traffic
from raymlops.signature import Signature

SECRET = "rk_k1_" + "s" * 43


class FakePeers:
    """Other versions: 8 answers ten times as much, 9 raises, 10 never answers, 11 is busy, 12 refuses, 13 gives up."""

    def __init__(self):
        self.asked: list[int] = []

    async def ask(self, version, columns, *, rows):
        self.asked.append(version)
        if version == 9:
            msg = "a broken canary"
            raise ArithmeticError(msg)
        if version == 11:
            raise Refusal(503, "overloaded", "too much to do")
        if version == 13:
            raise TimeoutError
        if version == 12:
            raise InvalidRowsError([RowProblem(0, "distance", "no such place")])
        if version == 10:
            await asyncio.Event().wait()
        return {"late": columns["distance"] * (20 if version == 8 else 2)}, 0.25


def served_by(**traffic):
    """Return a front with this traffic, its peers, and the list of what was recorded."""
    settings = Settings(limits=Limits(timeout_s=5.0), traffic=Traffic(**traffic))
    records, peers = [], FakePeers()
    front = make_front(settings=settings, peers=peers, record=records.append, draw=lambda: 0.0)
    return front, peers, records


def test_a_canary_answers_its_share_under_its_own_version():
    """The answer, the header and the record name version 8, with the time that its model took."""
    front, _, records = served_by(canaries=(Share(8, 0.5),))
    response = predict(front, [ROW])
    assert response.json()["outputs"] == [{"late": 40.0}]
    assert (response.json()["model_version"], response.headers["x-model-version"]) == ("8", "8")
    (record,) = records
    assert (record.version, record.route, record.model_seconds, record.fallback_from) == (8, "canary", 0.25, None)


@pytest.mark.parametrize(("canary", "code"), [(9, "error"), (10, "late"), (11, "overloaded"), (13, "late")])
def test_a_canary_that_errs_or_is_late_is_answered_by_the_champion(canary, code):
    """The caller notices nothing, and it is counted against the canary, with the reason and the traffic's epoch."""
    front, peers, records = served_by(canaries=(Share(canary, 1.0),), canary_timeout_s=0.05, epoch="e1")
    response = predict(front, [ROW])
    assert response.status_code == 200
    assert response.json()["outputs"] == [{"late": 4.0}]
    assert response.headers["x-model-version"] == "7"
    assert peers.asked == [canary]
    (record,) = records
    assert (record.version, record.route, record.fallback_from) == (7, "champion", canary)
    assert (record.fallback_code, record.epoch) == (code, "e1")


def test_rows_that_a_canary_refuses_are_its_answer():
    """The caller gets its 422, as of the champion's recipe: no failure of the canary, and the champion is not asked."""
    front, peers, records = served_by(canaries=(Share(12, 1.0),), epoch="e1")
    warmed_up = len(front.handler.model.calls)
    response = predict(front, [ROW])
    assert (response.status_code, response.headers["x-model-version"]) == (422, "12")
    assert response.json()["error"]["problems"] == [{"row": 0, "field": "distance", "message": "no such place"}]
    assert (peers.asked, len(front.handler.model.calls)) == ([12], warmed_up)
    (record,) = records
    assert (record.version, record.route, record.code) == (12, "canary", "invalid_rows")
    assert record.fallback_from is None


def test_a_canary_leaves_the_champion_half_of_the_deadline():
    """Also where it may take longer than a request as a whole: the caller has an answer, no 504."""
    traffic = Traffic(canaries=(Share(10, 1.0),), canary_timeout_s=60.0)
    records = []
    settings = Settings(limits=Limits(timeout_s=0.2), traffic=traffic)
    front = make_front(settings=settings, peers=FakePeers(), record=records.append)
    assert predict(front, [ROW]).status_code == 200
    assert (records[0].fallback_from, records[0].fallback_code) == (10, "late")


def test_a_client_that_leaves_while_a_canary_is_asked_counts_against_the_canary():
    """It was too late for them: 499, with the canary as the one that was waited for."""
    front, peers, records = served_by(canaries=(Share(10, 1.0),), canary_timeout_s=60.0)

    async def leave():
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "headers": [],
            BODY: orjson.dumps({"rows": [ROW]}),
        }
        task = asyncio.create_task(front.reply(scope, None))
        while not peers.asked:  # noqa: ASYNC110 - until the other task has got that far
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(leave())
    (record,) = records
    assert (record.status, record.fallback_from, record.fallback_code) == (499, 10, "late")
    assert record.route == "champion"


def test_a_shadow_is_compared_and_never_seen():
    """The caller has the champion's answer; the copy is recorded with the largest difference, 40 - 4."""
    front, _, records = served_by(shadows=(Share(8, 1.0),))
    response = predict(front, [ROW, {**ROW, "distance": 1.0}])
    assert response.headers["x-model-version"] == "7"
    mine, copy = records
    assert (mine.route, copy.route, copy.version, copy.difference) == ("champion", "shadow", 8, 36.0)
    assert copy.request_id == mine.request_id


def test_a_shadow_that_hangs_is_left_behind():
    """Its copies in flight are bounded, the rest is dropped and counted, and nobody waits."""
    front, peers, _ = served_by(shadows=(Share(10, 1.0),), max_shadow_requests=2)

    async def several():
        transport = httpx.ASGITransport(front, root_path=PREFIX)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.post(f"{PREFIX}/predict", json={"rows": [ROW]}) for _ in range(5)]

    assert [response.status_code for response in asyncio.run(several())] == [200] * 5
    assert peers.asked == [10, 10]
    assert front.handler.shadows.dropped[10] == 3


def test_a_request_may_be_pinned_to_a_version_that_is_up():
    """By header; a version that is not up is named as such, and nothing falls back."""
    front, peers, records = served_by(standing=(8, 9), canaries=(Share(9, 1.0),))
    assert predict(front, [ROW], **{"x-raymlops-version": "8"}).json()["outputs"] == [{"late": 40.0}]
    assert records[-1].route == "pinned"
    assert predict(front, [ROW], **{"x-raymlops-version": "7"}).headers["x-model-version"] == "7"
    assert (records[-1].route, records[-1].version) == ("pinned", 7)
    assert peers.asked == [8]
    unknown = predict(front, [ROW], **{"x-raymlops-version": "12"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_version")
    assert predict(front, [ROW], **{"x-raymlops-version": "9"}).status_code == 500


def test_a_path_may_name_the_version_that_answers():
    """The champion by its number, which keeps a canary away; another one is a choice, as by header."""
    front, peers, records = served_by(standing=(8, 9), canaries=(Share(9, 1.0),))
    body = {"inputs": [{"name": "distance", "datatype": "FP64", "shape": [1], "data": [2.0]}]}
    body["inputs"].append({"name": "origin", "datatype": "BYTES", "shape": [1], "data": ["JFK"]})
    for version in ("7", "8"):
        answer = ask(front, "POST", f"/v2/models/flights/versions/{version}/infer", json=body)
        assert answer.json()["model_version"] == answer.headers["x-model-version"] == version
        assert records[-1].route == "pinned"
    assert peers.asked == [8]
    for version in ("12", "latest", "8/9", ""):
        unknown = ask(front, "POST", f"/v2/models/flights/versions/{version}/infer", json=body)
        assert unknown.status_code == 404


def test_a_key_without_the_scope_may_not_pin():
    """It may ask, but not choose."""
    entry = KeyEntry("k1", sha256(SECRET.encode()).hexdigest(), frozenset({"predict"}))
    settings = Settings(access=Access(required=True, keys=(entry,)), traffic=Traffic(standing=(8,)))
    front = make_front(settings=settings, peers=FakePeers())
    headers = {"authorization": f"Bearer {SECRET}"}
    assert predict(front, [ROW]).status_code == 401
    assert predict(front, [ROW]).headers["www-authenticate"] == "Bearer"
    assert predict(front, [ROW], **headers).status_code == 200
    assert predict(front, [ROW], **headers, **{"x-raymlops-version": "8"}).status_code == 403
    assert ask(front, "GET").status_code == 401
    assert ask(front, "GET", "/readyz").status_code == 200
    assert ask(front, "POST", "/feedback", json={"labels": []}, headers=headers).status_code == 403


def test_sticky_callers_keep_to_one_version():
    """With half of the traffic each, a session is answered by the same version however often it asks."""
    front, _, _ = served_by(canaries=(Share(8, 0.5),), sticky="header", sticky_header="x-session-id", salt="flights")
    seen = {}
    for session in map(str, range(40)):
        versions = {predict(front, [ROW], **{"x-session-id": session}).headers["x-model-version"] for _ in range(3)}
        assert len(versions) == 1
        seen[session] = versions.pop()
    assert set(seen.values()) == {"7", "8"}


def test_too_many_waiting_rows_are_turned_away_at_once():
    """503 with Retry-After, while what is in the model is answered; where no row has room a body is not even read."""
    running, go_on = threading.Event(), threading.Event()
    read = []

    async def unread():
        read.append("a part")
        yield b"{"

    class Held(FakeModel):
        def predict(self, columns):
            if len(columns["distance"]) == 7:
                running.set()
                go_on.wait(5)
            return super().predict(columns)

    front = front_of(Held(), limits=Limits(max_waiting_rows=10))
    front.warm_up()
    front.handler.batcher._inline_rows = 0  # so that all of them go to the worker thread

    async def scenario():
        transport = httpx.ASGITransport(front, root_path=PREFIX)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            def post(rows):
                return asyncio.create_task(client.post(f"{PREFIX}/predict", json={"rows": [ROW] * rows}))

            first = post(7)
            await asyncio.to_thread(running.wait, 5)
            second = post(8)
            while front.handler.batcher.waiting_rows < 8:  # noqa: ASYNC110 - until the other task has got that far
                await asyncio.sleep(0)
            refused = [await post(3)]
            third = post(2)
            while front.handler.batcher.waiting_rows < 10:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            refused.append(await client.post(f"{PREFIX}/predict", content=unread()))
            go_on.set()
            return [await first, await second, await third], refused

    answered, refused = asyncio.run(scenario())
    assert [response.status_code for response in answered] == [200, 200, 200]
    assert [response.status_code for response in refused] == [503, 503]
    assert {response.json()["error"]["code"] for response in refused} == {"overloaded"}
    assert min(int(response.headers["retry-after"]) for response in refused) >= 1
    assert read == []
    front.handler.close()


LARGE = orjson.dumps({"rows": [ROW] * 2_000})


class Watched(Turns):
    """Turns that are counted: those that are held, at most, and those that were taken."""

    def __init__(self):
        super().__init__()
        self.taken = self.held = self.at_once = 0

    async def take(self):
        turn = await super().take()
        if turn is not None:
            self.taken += 1
            self.held += 1
            self.at_once = max(self.at_once, self.held)
        return turn

    def ended(self, took_s):
        self.held -= 1
        super().ended(took_s)


def test_beside_small_requests_large_ones_take_turns():
    """One at a time until its rows are queued, or soon after; each turn ends, whatever the outcome."""
    front = make_front(turns=Watched())
    turns = front.handler.turns
    labels = b'{"labels":[%s]}' % (b" " * 70_000)

    async def scenario():
        transport = httpx.ASGITransport(front, root_path=PREFIX)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            alone = await client.post(f"{PREFIX}/predict", content=LARGE)
            assert (alone.status_code, turns.taken) == (200, 0)
            assert (await client.post(f"{PREFIX}/predict", json={"rows": [ROW]})).status_code == 200
            posts = [client.post(f"{PREFIX}/predict", content=LARGE) for _ in range(3)]
            posts += [client.post(f"{PREFIX}/invocations", content=b"x" * 70_000)]
            posts += [client.post(f"{PREFIX}/feedback", content=labels)]
            return [reply.status_code for reply in await asyncio.gather(*posts)]

    assert asyncio.run(scenario()) == [200, 200, 200, 400, 422]
    assert (turns.taken, turns.at_once, turns.held) == (5, 1, 0)
    front.handler.close()


class Photos(FakeModel):
    """Answers the value of an image's one pixel."""

    signature = Signature((Column("photo", "image", shape=(1, 1, 1)),), SIGNATURE.outputs)
    example = [{"photo": b64encode(png_files(np.zeros((1, 1, 1, 1), np.uint8))[0]).decode()}]  # noqa: RUF012

    def predict(self, columns):
        return {"late": columns["photo"][:, 0, 0, 0].astype(float)}


def test_a_small_body_of_many_images_takes_a_turn():
    """One image does not. Files count as texts do; for a model without images neither does."""

    front = front_of(Photos(), turns=Watched())
    front.warm_up()
    turns, row = front.handler.turns, Photos.example[0]
    taken = []
    for rows in (1, MANY_IMAGES, MANY_IMAGES + 1):
        assert len(predict(front, [row] * rows).json()["outputs"]) == rows
        taken.append(turns.taken)
    assert (taken, turns.held) == ([0, 0, 1], 0)
    files = png_files(np.zeros((MANY_IMAGES + 1, 1, 1, 1), np.uint8))
    assert front.handler.is_large(b"".join(files))
    assert not make_front().handler.is_large(b"".join(files))
    front.handler.close()


def test_a_large_request_that_waits_for_the_model_keeps_no_turn():
    """Others are parsed meanwhile, and share its next batch."""
    go_on = threading.Event()

    class Held(FakeModel):
        def predict(self, columns):
            if columns["distance"][0] == 3.0:
                go_on.wait(10)
            return super().predict(columns)

    front = front_of(Held())
    front.warm_up()
    batcher, row = front.handler.batcher, {**ROW, "distance": 3.0}
    batcher._inline_rows = 0

    async def scenario():
        transport = httpx.ASGITransport(front, root_path=PREFIX)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            front.handler.turns.note_small()
            body = orjson.dumps({"rows": [row]}) + b" " * 70_000
            posts = [asyncio.create_task(client.post(f"{PREFIX}/predict", content=body)) for _ in range(4)]
            try:
                async with asyncio.timeout(8):
                    while batcher.waiting_rows < 3:
                        await asyncio.sleep(0.001)
                        front.handler.turns.note_small()
            finally:
                go_on.set()
            return [reply.status_code for reply in await asyncio.gather(*posts)]

    assert asyncio.run(scenario()) == [200] * 4
    front.handler.close()


def test_a_body_that_is_parsed_beyond_its_deadline_keeps_its_turn():
    """As one whose client has left: it is answered at once, and the next one begins once the thread is free."""
    begun, go_on = threading.Event(), threading.Event()

    class Long(ParsePool):
        async def hold(self, leave, function, /, *given, **named):
            return await super().hold(leave, lambda: (begun.set(), go_on.wait(10)))

    front = make_front(turns=Watched(), parsing=Long())
    turns = front.handler.turns

    async def scenario():
        turns.note_small()
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], BODY: LARGE}
        left = asyncio.create_task(front.reply(scope, None))
        await asyncio.to_thread(begun.wait)
        left.cancel()
        await asyncio.wait([left])
        next_one = asyncio.create_task(turns.take())
        await asyncio.sleep(0)
        seen = [turns.held, next_one.done()]
        go_on.set()
        (await next_one).end()
        return [*seen, turns.held]

    assert asyncio.run(scenario()) == [1, False, 0]
    front.handler.close()


def test_what_is_decoded_and_waits_is_bounded_in_bytes():
    """Ten bytes of pixels here: 8 and 2 fit, 3 and what comes then do not; 12 do once nobody else waits."""
    go_on = threading.Event()

    class Held(Photos):
        def predict(self, columns):
            if len(columns["photo"]) == 8:
                go_on.wait(10)
            return super().predict(columns)

    front = front_of(Held())
    go_on.set()
    front.warm_up()
    go_on.clear()
    handler, row = front.handler, Photos.example[0]
    handler.configure(Settings(memory_bytes=40))  # of which a quarter may wait
    handler.batcher._inline_rows = 0

    async def scenario():
        transport = httpx.ASGITransport(front, root_path=PREFIX)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def post(rows):
                reply = await client.post(f"{PREFIX}/predict", json={"rows": [row] * rows})
                return reply.status_code if reply.status_code == 200 else reply.json()["error"]["code"]

            async def held(size):
                while handler.held_bytes < size:  # noqa: ASYNC110 - until the other task has got that far
                    await asyncio.sleep(0)

            first = asyncio.create_task(post(8))
            await held(8)
            codes = [await post(3)]
            with pytest.raises(Refusal) as from_another:
                await handler.answer({"photo": np.zeros((3, 1, 1, 1), np.uint8)}, rows=3)
            second = asyncio.create_task(post(2))
            await held(10)
            codes += [from_another.value.status, await post(1)]
            go_on.set()
            codes += [await first, await second, await post(12)]
            await handler.answer({"photo": np.zeros((12, 1, 1, 1), np.uint8)}, rows=12)
            return codes

    assert asyncio.run(scenario()) == ["overloaded", 503, "overloaded", 200, 200, 200]
    assert handler.held_bytes == 0
    handler.close()


@pytest.mark.parametrize(("slots", "most"), [(64, 32), (16, 8), (1, 1)])
def test_large_requests_that_wait_leave_half_of_the_slots_to_others(slots, most):
    """Also once that changes."""
    settings = Settings(limits=Limits(max_ongoing_requests=slots))
    started, changed = make_front(settings=settings).handler, make_front().handler
    changed.configure(settings)
    assert (started.turns.most, changed.turns.most) == (most, most)


def test_a_large_request_that_another_version_answers_keeps_no_turn():
    """A canary that hangs holds up its own share alone."""
    front, _, _ = served_by(canaries=(Share(10, 1.0),), canary_timeout_s=60.0)
    handler = front.handler

    async def scenario():
        handler.turns.note_small()
        transport = httpx.ASGITransport(front, root_path=PREFIX)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            hung = asyncio.create_task(client.post(f"{PREFIX}/predict", content=LARGE))
            while not handler.peers.asked:  # noqa: ASYNC110 - until the other task has got that far
                await asyncio.sleep(0)
            turn = await asyncio.wait_for(handler.turns.take(), 4.0)
            turn.end()
            hung.cancel()

    asyncio.run(scenario())
    handler.close()


def test_the_answer_to_a_large_request_is_encoded_beside_the_event_loop():
    """It takes as long as its rows took to parse."""
    front = make_front()
    ran = []
    finish = front.handler.parsing.finish
    front.handler.parsing.finish = lambda function, *given, **named: (
        ran.append(function) or finish(function, *given, **named)
    )
    assert len(predict(front, LARGE).json()["outputs"]) == 2_000
    assert len(ran) == 1
    front.handler.close()


def test_as_many_large_requests_as_a_replica_accepts_are_answered():
    """None is refused because others wait to be parsed."""
    go_on = threading.Event()

    class Held(ParsePool):
        asked = 0

        async def hold(self, leave, function, /, *given, **named):
            self.asked += 1
            if self.asked == 64:
                go_on.set()
            return await super().hold(leave, lambda: go_on.wait(10) and function(*given, **named))

    front = make_front(parsing=Held())

    async def scenario():
        transport = httpx.ASGITransport(front, root_path=PREFIX)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = orjson.dumps({"rows": [ROW]}) + b" " * 70_000
            posts = [client.post(f"{PREFIX}/predict", content=body) for _ in range(64)]
            return [reply.status_code for reply in await asyncio.gather(*posts)]

    assert asyncio.run(scenario()) == [200] * 64
    front.handler.close()


def test_a_full_champion_hands_on_what_another_version_answers():
    """A pin and a canary's share go where there is room; what is the champion's own is refused unread."""
    limits = Limits(max_waiting_rows=10)
    draws = [0.0, 0.9]
    for traffic in (Traffic(standing=(8,)), Traffic(standing=(8,), canaries=(Share(8, 0.5),))):
        settings = Settings(limits=limits, traffic=traffic)
        front = make_front(settings=settings, peers=FakePeers(), draw=lambda: draws.pop(0))
        front.handler.batcher.waiting_rows = 10
        pinned = predict(front, [ROW], **{"x-raymlops-version": "8"})
        assert (pinned.status_code, pinned.json()["model_version"]) == (200, "8")
        assert predict(front, b"{", **{"x-raymlops-version": "7"}).status_code == 503
        if traffic.canaries:
            assert predict(front, [ROW]).json()["model_version"] == "8"
        assert predict(front, b"{").status_code == 503
    assert draws == []


def test_every_request_to_the_model_is_recorded_once():
    """Answered or refused, with its status and code; pages and health checks are none."""
    records = []
    front = make_front(record=records.append)
    predict(front, [ROW], **{"x-request-id": "one"})
    predict(front, b"{")
    ask(front, "GET", "/readyz")
    ask(front, "GET", "/docs")
    assert [(record.status, record.code, record.rows) for record in records] == [(200, "", 1), (400, "not_json", 0)]
    assert records[0].request_id == "one"
    assert records[0].outputs["late"].tolist() == [4.0]
    assert records[0].seconds >= records[0].model_seconds > 0


@pytest.mark.parametrize(("leaves", "status"), [(True, 499), (False, 504)])
def test_a_request_that_was_computed_and_not_answered_has_no_outputs(leaves, status):
    """Its client left, or its deadline passed, while the answer was encoded: no log, shadow or label is about it."""
    encoding = asyncio.Event()

    class Held(ParsePool):
        async def finish(self, function, /, *given, **named):
            encoding.set()
            await asyncio.Event().wait()

    records, peers = [], FakePeers()
    settings = Settings(limits=Limits(timeout_s=60.0 if leaves else 0.1), traffic=Traffic(shadows=(Share(8, 1.0),)))
    front = make_front(settings=settings, peers=peers, record=records.append, draw=lambda: 0.0, parsing=Held())
    known = [Label("one", 0, "1")]

    async def scenario():
        headers = [(b"x-request-id", b"one")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, BODY: LARGE}
        task = asyncio.create_task(front.reply(scope, None))
        await encoding.wait()
        if leaves:
            task.cancel()
        await asyncio.wait([task])

    asyncio.run(scenario())
    assert [(record.status, record.rows, record.outputs) for record in records] == [(status, 2_000, None)]
    assert peers.asked == []
    assert front.handler.answered.check(known, caller=None) == [0]
    front.handler.close()


def test_labels_are_accepted_once_they_are_kept():
    """202 with their number; without a log there is no place for them."""

    class Kept:
        def __init__(self):
            self.labels = []

        def add(self, labels, *, key_id=None, caller=None):
            self.labels += labels
            done = Future()
            done.set_result(None)
            return done

    front = make_front()
    body = {"labels": [{"request_id": "one", "label": 1}, {"request_id": "one", "row": 1, "label": 0}]}
    assert ask(front, "POST", "/feedback", json=body).json()["error"]["code"] == "no_log"
    front.labels = kept = Kept()
    response = ask(front, "POST", "/feedback", json=body)
    assert (response.status_code, response.json()["accepted"]) == (202, 2)
    assert [(label.request_id, label.row) for label in kept.labels] == [("one", 0), ("one", 1)]
    assert ask(front, "POST", "/feedback", json={"labels": [{"row": 0}]}).status_code == 422
    twice = b'{"labels": [{"request_id": "a", "request_id": "b", "label": 1}]}'
    assert ask(front, "POST", "/feedback", content=twice).json()["error"]["code"] == "duplicate_key"


def test_labels_are_bound_to_the_key_that_asked():
    """Another key's are refused; a key for feedback alone labels everybody's; what is kept says whose requests."""
    secrets = {name: f"rk_{name}_{'s' * 43}" for name in ("shop", "bank", "review")}
    entries = tuple(
        KeyEntry(name, sha256(secret.encode()).hexdigest(), frozenset(scopes), name=f"of {name}")
        for (name, secret), scopes in zip(
            secrets.items(), ({"predict", "feedback"}, {"predict", "feedback"}, {"feedback"}), strict=True
        )
    )
    front = make_front(settings=Settings(access=Access(required=True, keys=entries)))
    kept = []

    class Kept:
        def add(self, labels, *, key_id=None, caller=None):
            kept.append((len(labels), key_id, caller))
            done = Future()
            done.set_result(None)
            return done

    front.labels = Kept()
    asked = predict(front, [ROW], **{"x-api-key": secrets["shop"]}).json()["request_id"]

    def feedback(who, *request_ids):
        labels = [{"request_id": request_id, "label": 1} for request_id in request_ids]
        return ask(front, "POST", "/feedback", json={"labels": labels}, headers={"x-api-key": secrets[who]})

    refused = feedback("bank", asked)
    assert (refused.status_code, refused.json()["error"]["problems"][0]["field"]) == (422, "request_id")
    assert feedback("shop", asked).json()["unmatched"] == []
    assert feedback("review", asked, "elsewhere").json()["unmatched"] == [1]
    assert kept == [(1, "shop", "of shop"), (2, "review", None)]


def test_labels_that_answers_cannot_be_compared_with_are_refused():
    """422 with place and reason; nothing of the request is kept."""
    front = make_front()
    front.labels = None
    front.expect_labels(AnswerLoss("number", "late", scale=2.0), None)
    body = {"labels": [{"request_id": "a", "label": 1.5}, {"request_id": "a", "label": "soon"}]}
    refused = ask(front, "POST", "/feedback", json=body)
    (problem,) = refused.json()["error"]["problems"]
    assert (refused.status_code, problem["row"], problem["field"]) == (422, 1, "label")
    assert "expected a number" in problem["message"]
    front.expect_labels(None, Column("minutes", "int"))
    body = {"labels": [{"request_id": "a", "label": 1.5}]}
    assert "integer" in ask(front, "POST", "/feedback", json=body).json()["error"]["problems"][0]["message"]


def test_new_settings_are_in_force_with_the_next_request():
    """Limits and traffic change while the front goes on."""
    front, peers, _ = served_by()
    assert predict(front, [ROW] * 3).status_code == 200
    front.handler.configure(Settings(limits=Limits(max_rows=2), traffic=Traffic(canaries=(Share(8, 1.0),))))
    assert predict(front, [ROW] * 3).status_code == 413
    assert predict(front, [ROW]).headers["x-model-version"] == "8"
    assert peers.asked == [8]


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ([1.0, 2.0], [1.5, 2.25], 0.5),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0),
        ([np.nan], [1.0], np.inf),
        ([1.0], [1.0, 2.0], np.inf),
    ],
)
def test_differences_of_numbers(one, other, difference):
    """The largest one counts; a value that only one of them has is infinitely far away."""
    assert largest_difference({"y": np.array(one)}, {"y": np.array(other)}) == difference


def test_differences_of_texts_and_names():
    """Texts are equal or not; so are the names of the columns."""
    texts = {"y": np.array(["a", None], dtype=object)}
    assert largest_difference(texts, {"y": np.array(["a", None], dtype=object)}) == 0.0
    assert largest_difference(texts, {"y": np.array(["b", None], dtype=object)}) == np.inf
    times = {"y": np.array(["2026-11-27", "NaT"], dtype="datetime64[us]")}
    assert largest_difference(times, dict(times)) == 0.0
    assert largest_difference(times, {"y": times["y"] + np.timedelta64(1, "us")}) == np.inf
    assert largest_difference(texts, {"z": texts["y"]}) == np.inf


def test_a_refusal_survives_the_way_between_processes():
    """What a champion is told by another version's process is what that version said."""
    refusal = Refusal(503, "overloaded", "try again", retry_after_s=2.0)
    back = pickle.loads(pickle.dumps(refusal))
    assert (back.status, back.code, back.message, back.retry_after_s) == (503, "overloaded", "try again", 2.0)


def test_batches_of_texts_are_bounded_by_their_characters():
    """By a setting that may change in place; categories are encoded as numbers, and do not count."""
    model = FakeModel()
    handler = front_of(model).handler
    assert handler.batcher._varying == ()
    model.signature = Signature((Column("text", "string"), *SIGNATURE.inputs), SIGNATURE.outputs)
    handler.use(model)
    assert handler.batcher._varying == (("text", False),)
    handler.configure(Settings(limits=Limits(max_batch_elements=9)))
    assert handler.batcher.max_elements == 9
