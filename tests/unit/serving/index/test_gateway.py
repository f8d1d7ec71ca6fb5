"""The hop from the host to each model: within a deadline and a share of its own, and for callers with a key alone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from hashlib import sha256

import pytest

from raymlops.serving.arrival import ARRIVED, METADATA, stamp, stamp_in
from raymlops.serving.asgi import BODY, COUNTED, make_reply, read_body
from raymlops.serving.auth import Access, KeyEntry
from raymlops.serving.index.gateway import Gateway
from raymlops.serving.places import IN_FLIGHT, OWN_PLACES
from raymlops.serving.protocols.grpc_messages import request_class
from raymlops.serving.proxy.bodies import replayed
from raymlops.serving.proxy.bounds import MAX_VALUES, KnownBounds
from raymlops.serving.refusal import Limits
from raymlops.serving.replica.grpc_front import GrpcReply
from raymlops.serving.replica.peers import ServePeers

SECRET = "rk_k1_" + "s" * 43
KEY = KeyEntry("k1", sha256(SECRET.encode()).hexdigest(), frozenset({"predict"}), rate_per_s=1.0)
UNAUTHENTICATED, LATE, UNAVAILABLE, EXHAUSTED, INVALID = 16, 4, 14, 8, 3


class FakeFront:
    """The replicas of one version: those of ``hung`` never answer."""

    def __init__(self, name, version):
        self.name, self.version = name, version
        self.asked: list[bytes] = []
        self.given: list[tuple] = []
        self.cancelled = 0
        self.http_call = self.grpc_call = self

    def remote(self, *given):
        return FakeCall(self, given)

    async def answer(self, given):
        self.asked.append(given[0])
        self.given.append(given)
        if self.name == "hung":
            await asyncio.Event().wait()
        if isinstance(given[0], dict):
            return make_reply(200, f"{self.name} {self.version}".encode(), "r")
        return GrpcReply(self.name.encode())


class FakeCall:
    """One call, which is made when it is awaited."""

    def __init__(self, front, given):
        self._front, self._given = front, given

    def __await__(self):
        return self._front.answer(self._given).__await__()

    def cancel(self):
        self._front.cancelled += 1


class FakePeers(ServePeers):
    """The versions of one model, with replicas in this process."""

    def handle(self, version, *, large=False):
        front = self._handles.setdefault((version, False), FakeFront(self._name, version))
        front.large = large
        return front


class AnnouncingFront(FakeFront):
    """Says how many values a body may have."""

    async def answer(self, given):
        reply = await super().answer(given)
        return replace(reply, headers=(*reply.headers, (MAX_VALUES, b"60")))


class AnnouncingPeers(ServePeers):
    """The versions of such a model."""

    def handle(self, version, *, large=False):
        return AnnouncingFront(self._name, version)


def model(name, version=7, **more):
    return {"name": name, "version": str(version), "digest": "d" * 64, "path": f"/models/{name}", **more}


def make(*models):
    one = Gateway(FakePeers)
    one.configure(models)
    return one


async def no_body():
    return {"type": "http.request", "body": b"{}", "more_body": False}


def infer(one, name, *, receive=no_body, **headers):
    return ask(one, "POST", f"/v2/models/{name}/infer", receive=receive, **headers)


def ask(one, method, path, *, receive=no_body, arrived=None, **headers):
    given = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": given}
    return one.reply(scope if arrived is None else {**scope, ARRIVED: arrived}, receive)


async def unread():
    pytest.fail("the body was asked for")


def grpc_infer(one, name, **metadata):
    body = request_class("ModelInfer")(model_name=name).SerializeToString()
    return one.grpc_call("ModelInfer", body, [(key.replace("_", "-"), value) for key, value in metadata.items()])


def code(reply):
    return json.loads(reply.body)["code"]


def test_a_champion_that_hangs_is_waited_for_no_longer_than_its_deadline():
    """504 and DEADLINE_EXCEEDED, both worth another try; its calls are cancelled, so that it makes up for none."""
    one = make(model("hung", timeout_s=0.05))
    reply = asyncio.run(infer(one, "hung"))
    assert (reply.status, code(reply), dict(reply.headers)[b"retry-after"]) == (504, "timeout", b"1")
    called = asyncio.run(grpc_infer(one, "hung"))
    assert (called.code, "retry-after" in dict(called.metadata)) == (LATE, True)
    assert one._champions["hung"].peers.handle(7).cancelled == 2


def test_a_models_bound_of_values_is_learned_from_its_answers_for_a_while():
    """The guard of the gateway's process then refuses what has more; clients do not see the header."""
    known, later = KnownBounds(), []
    one = Gateway(AnnouncingPeers, known=known, later=lambda *given: later.append(given))
    one.configure([model("flights")])

    async def learn():
        reply = await infer(one, "flights")
        assert MAX_VALUES not in dict(reply.headers)
        assert known.of_model("flights").max_values == 60
        ((_, forget, name),) = later
        forget(name)
        assert known.of_model("flights") is None

    asyncio.run(learn())


def test_a_body_that_no_guard_counted_is_counted_before_the_model_has_it():
    """The model is asked for its bound, 60 values; what was counted, or is no JSON, goes on as it is."""
    asked = []

    class Peers(ServePeers):
        def handle(self, version, *, large=False):
            front = AnnouncingFront(self._name, version)
            front.asked = asked
            return front

    one = Gateway(Peers, known=KnownBounds(), later=lambda *_given: None)
    one.configure([model("flights")])

    async def post(values, **more):
        body = b'{"inputs":[' + b",".join([b" " * 2_000 + b"1"] * values) + b"]}"
        assert len(body) > 64_000
        scope = {"type": "http", "method": "POST", "path": "/v2/models/flights/infer", "headers": [], **more}
        reply = await one.reply(scope, replayed([body], unread))
        paths, asked[:] = [call["path"].rpartition("/")[2] for call in asked], []
        return reply.status, paths

    async def scenario():
        assert await post(62) == (413, ["readyz"])
        assert await post(61) == (200, ["infer"])
        assert await post(62) == (413, [])
        assert await post(62, **{COUNTED: True}) == (200, ["infer"])
        assert await post(62, headers=[(b"inference-header-content-length", b"9")]) == (200, ["infer"])

    asyncio.run(scenario())


def test_a_champion_that_hangs_does_not_block_the_others():
    """It has its share of what may be on its way, beyond which callers are told at once; the others have theirs.

    Those that nobody asks keep none of it.
    """
    models = [model("hung", timeout_s=60.0), model("flights"), *(model(f"idle{index}") for index in range(23))]
    one = make(*models)

    async def scenario():
        waiting = [asyncio.create_task(infer(one, "hung")) for _ in range(IN_FLIGHT // 2 + OWN_PLACES)]
        while len(one._champions["hung"].peers.handle(7).asked) < len(waiting):  # noqa: ASYNC110 - until they have got that far
            await asyncio.sleep(0)
        one.configure(models)  # which forgets none of them
        refused, called = await infer(one, "hung"), await grpc_infer(one, "hung")
        answered = await infer(one, "flights")
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        return refused, called, answered, one._places.taken

    refused, called, answered, left = asyncio.run(scenario())
    assert (refused.status, code(refused), dict(refused.headers)[b"retry-after"]) == (503, "overloaded", b"1")
    assert called.code == UNAVAILABLE
    assert (answered.status, answered.body) == (200, b"flights 7")
    assert not left


def test_nothing_of_a_body_is_read_for_a_caller_without_a_key():
    """With one, its rate is left to the model's own front."""
    one = make(model("flights", access=Access(required=True, keys=(KEY,)).to_dict()))
    refused = asyncio.run(infer(one, "flights", receive=unread))
    assert (refused.status, code(refused), dict(refused.headers)[b"www-authenticate"]) == (
        401,
        "unauthenticated",
        b"Bearer",
    )
    assert asyncio.run(grpc_infer(one, "flights")).code == UNAUTHENTICATED
    for _ in range(3):
        assert asyncio.run(infer(one, "flights", x_api_key=SECRET)).status == 200
        assert asyncio.run(grpc_infer(one, "flights", x_api_key=SECRET)).code == 0


@pytest.mark.parametrize("path", ["ready", "versions/7/ready", "infer", ""])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_nothing_of_a_model_is_told_without_a_key(method, path):
    """Its readiness neither; nobody's body is read for it."""
    one = make(model("flights", access=Access(required=True, keys=(KEY,)).to_dict()))
    assert asyncio.run(ask(one, method, f"/v2/models/flights/{path}", receive=unread)).status == 401
    assert asyncio.run(ask(one, "GET", "/v2/models/flights/ready", x_api_key=SECRET)).status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "GET", "HEAD"])
def test_a_body_of_another_method_is_not_read(method):
    """The model's own front says which methods it takes, of which none but one has a body."""
    one = make(model("flights"))
    assert asyncio.run(ask(one, method, "/v2/models/flights/infer", receive=unread, arrived=stamp())).status == 200
    ((scope,),) = one._champions["flights"].peers.handle(7).given
    assert scope[BODY] == b""


def test_a_body_that_does_not_come_keeps_no_place():
    """A hundred of them, more than there are places: the next caller is answered."""
    one = make(model("flights", timeout_s=60.0))

    async def scenario():
        waiting = [asyncio.create_task(infer(one, "flights", receive=asyncio.Event().wait)) for _ in range(100)]
        await asyncio.sleep(0)
        answered = await infer(one, "flights")
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        return answered

    assert asyncio.run(scenario()).status == 200


def test_a_call_that_comes_too_late_is_handed_to_nobody():
    """It waited for the index for as long as the model's deadline; another took half of it, and says so."""
    one = make(model("flights", timeout_s=60.0))
    machine, now = stamp()
    late = asyncio.run(ask(one, "POST", "/v2/models/flights/infer", arrived=(machine, now - 61.0)))
    assert (late.status, code(late), one._champions["flights"].peers._handles) == (504, "timeout", {})
    asyncio.run(ask(one, "POST", "/v2/models/flights/infer", arrived=(machine, now - 30.0)))
    asyncio.run(grpc_infer(one, "flights"))
    handed, called = one._champions["flights"].peers.handle(7).given
    assert handed[0][ARRIVED] == (machine, now - 30.0)
    assert stamp_in(called[2])[1] >= now


def test_replicas_of_an_earlier_release_take_what_is_handed_on():
    """A method, a message and a list of pairs of texts, over gRPC; a client's own moment is not among them."""
    one = make(model("flights"))
    before = stamp()[1]
    asyncio.run(grpc_infer(one, "flights", **{METADATA: "here 0.0", "x_tenant": "k"}))
    ((method, _, metadata),) = one._champions["flights"].peers.handle(7).given
    assert (method, metadata[0]) == ("ModelInfer", ("x-tenant", "k"))
    assert [(name, type(value)) for name, value in metadata[1:]] == [(METADATA, str)]
    assert stamp_in(metadata)[1] >= before


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/models/flights/infer"),
        ("POST", "/v2/models/flights/versions/7/infer"),
        ("GET", "/v2/models/flights"),
        ("GET", "/v2/models/flights/ready"),
    ],
)
def test_what_is_for_a_model_is_handed_on(method, path):
    """With the path that its own front knows."""
    one = make(model("flights"))
    assert asyncio.run(ask(one, method, path)).status == 200
    ((scope,),) = one._champions["flights"].peers.handle(7).given
    assert (scope["method"], scope["root_path"], scope["path"]) == (method, "/models/flights", f"/models/flights{path}")


@pytest.mark.parametrize(("size", "large"), [(60_000, False), (100_000, True)])
def test_a_large_body_is_passed_by_reference(size, large):
    """As an array, which the model's front takes for its bytes."""
    body = b" " * size

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    one = make(model("flights"))
    assert asyncio.run(infer(one, "flights", receive=receive)).status == 200
    front = one._champions["flights"].peers._handles[7, False]
    *_, (scope,) = front.given  # of a large one after the model's readiness, which tells its bound
    assert front.large is large
    assert isinstance(scope[BODY], bytes) is not large
    assert asyncio.run(read_body(scope, unread, {}, limit=10**6)) == body


@pytest.mark.parametrize("path", ["/v2/models/fligths/infer", "/v2/models/flights2", "/v2/models//infer"])
def test_a_model_that_is_not_there_is_not_found(path):
    """And those that are there are named, with the caller's own request id."""
    reply = asyncio.run(ask(make(model("flights")), "POST", path, x_request_id="abc"))
    data = json.loads(reply.body)
    assert (reply.status, data["request_id"]) == (404, "abc")
    assert "/models/flights" in data["error"]


def test_a_failure_of_the_gateway_is_an_answer():
    """Whatever it raises."""
    one = make(model("flights"))
    one._champions["flights"].peers.handle(7).http_call = None
    reply = asyncio.run(infer(one, "flights"))
    assert (reply.status, code(reply)) == (500, "internal")


def test_an_answer_to_head_has_no_body():
    """Neither the index' own nor a refusal."""
    for path in ("/models", "/nope"):
        reply = asyncio.run(ask(make(), "HEAD", path))
        assert reply.body == b""
        assert int(dict(reply.headers)[b"content-length"]) > 0


def test_the_largest_bounds_of_all_models_are_told():
    """To whoever takes requests from clients; its own defaults without models."""
    one = make(model("flights", timeout_s=60.0, max_body_bytes=10), model("digits", timeout_s=1.0, max_body_bytes=20))
    assert (one.limits.timeout_s, one.limits.max_body_bytes) == (60.0, 20)
    assert make().limits == Limits()


@pytest.mark.parametrize(("required", "expected"), [([], False), ([True, True], True), ([True, False], False)])
def test_a_key_is_required_where_every_model_requires_one(required, expected):
    """Told with the bounds; without models nobody needs one."""
    access = [Access(required=each).to_dict() for each in required]
    one = make(*(model(f"m{number}", access=each, max_body_bytes=9) for number, each in enumerate(access)))
    assert (one.bounds.key_required, one.bounds.max_body_bytes) == (expected, one.limits.max_body_bytes)


def test_a_body_is_read_within_the_models_own_limit():
    """Not within one for all; a larger message is not forwarded either."""
    one = make(model("flights", max_body_bytes=1))
    assert asyncio.run(infer(one, "flights")).status == 413
    assert asyncio.run(grpc_infer(one, "flights")).code == EXHAUSTED
    assert one._champions["flights"].peers._handles == {}


def test_a_message_that_no_model_takes_is_not_read():
    """Not even for the name of its model, which may be in it, or none at all."""
    one = make(model("flights", max_body_bytes=10), model("digits", max_body_bytes=20))
    replies = [asyncio.run(one.grpc_call("ModelInfer", b"\xff" * size, [])) for size in (21, 20)]
    assert [reply.code for reply in replies] == [EXHAUSTED, INVALID]


def test_an_unknown_model_is_refused_as_one_that_is_hidden():
    """Over gRPC as over HTTP, and for readiness too: nobody finds a name by asking for it."""
    one = make(model("flights"), model("secret", access=Access(required=True).to_dict()))
    replies = [asyncio.run(grpc_infer(one, name)) for name in ("secret", "fligths")]
    errors = [json.loads(reply.details)["error"] for reply in replies]
    assert errors[0] == errors[1]
    assert errors[0]["code"] == "unauthenticated"
    for end in ("ready", "infer"):
        replies = [asyncio.run(ask(one, "GET", f"/v2/models/{name}/{end}")) for name in ("secret", "fligths")]
        assert [reply.status for reply in replies] == [401, 401]
        assert replies[0].headers == replies[1].headers
    known = make(model("flights"))
    assert "/models/flights" in asyncio.run(grpc_infer(known, "fligths")).details


def test_handles_of_versions_that_are_gone_are_let_go():
    """Of a model that stays, and of one that goes."""
    one = make(model("flights"), model("digits"))
    asyncio.run(infer(one, "flights"))
    peers = one._champions["flights"].peers
    assert set(peers._handles) == {(7, False)}
    one.configure([model("flights", 8)])
    assert peers._handles == {}
    assert set(one._champions) == {"flights"}
    assert asyncio.run(infer(one, "flights")).body == b"flights 8"


def test_calls_of_a_model_that_is_away_wait_for_nothing():
    """Its version is being replaced, over gRPC as over HTTP; the other model answers."""
    one = make(model("flights", away=True), model("digits"))
    reply = asyncio.run(grpc_infer(one, "flights"))
    assert (reply.code, dict(reply.metadata)["retry-after"]) == (UNAVAILABLE, "5")
    assert asyncio.run(infer(one, "flights")).status == 503
    assert asyncio.run(infer(one, "digits")).status == 200
    one.configure([model("flights", 8)])
    assert asyncio.run(infer(one, "flights")).status == 200
