from __future__ import annotations

import asyncio
import json
import time
from hashlib import sha256

import numpy as np
import pytest
from serving_fakes import SIGNATURE, FakeModel, front_of, make_front

from raymlops.serving.arrival import stamp, with_stamp
from raymlops.serving.auth import Access, KeyEntry
from raymlops.serving.protocols import oip
from raymlops.serving.protocols.grpc_messages import METHODS, request_class, response_class
from raymlops.serving.refusal import Limits
from raymlops.serving.replica.grpc_front import GrpcReply, call
from raymlops.serving.settings import Settings
from raymlops.serving.traffic import Share, Traffic

OK, INVALID, LATE, NOT_FOUND, DENIED, EXHAUSTED = 0, 3, 4, 5, 7, 8
UNIMPLEMENTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 12, 13, 14, 16
SECRET = "rk_k1_" + "x" * 43


class OtherVersions:
    """Answers for each version its number."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def ask(self, version, columns, *, rows):
        self.asked.append(version)
        return {"late": np.full(rows, float(version))}, 0.001

    async def metadata(self, version, headers):
        return {**oip.metadata(SIGNATURE, "flights", [str(version)]), "platform": f"that of {version}"}


def infer(*distances: float, origin: str = "JFK", **names: str) -> bytes:
    request = request_class("ModelInfer")(**names)
    rows = len(distances)
    for name, kind, field, values in (
        ("distance", "FP64", "fp64_contents", distances),
        ("origin", "BYTES", "bytes_contents", [origin.encode()] * rows),
    ):
        tensor = request.inputs.add(name=name, datatype=kind, shape=[rows])
        getattr(tensor.contents, field).extend(values)
    return request.SerializeToString()


def asked(front, method: str, body: bytes = b"", **metadata: str | bytes) -> GrpcReply:
    pairs = [(name.replace("_", "-"), value) for name, value in metadata.items()]
    return asyncio.run(call(front, method, body, pairs))


def message(method: str, reply: GrpcReply):
    return response_class(method).FromString(reply.body)


def error(reply: GrpcReply) -> dict:
    return json.loads(reply.details)["error"]


def keyed_front(**options):
    entry = KeyEntry("k1", sha256(SECRET.encode()).hexdigest(), frozenset({"predict"}), rate_per_s=options.get("rate"))
    traffic = options.get("traffic", Traffic())
    settings = Settings(access=Access(required=True, keys=(entry,)), traffic=traffic)
    return make_front(settings=settings, peers=options.get("peers", OtherVersions()))


def test_an_answer_names_itself_in_message_and_metadata():
    """Doubled distances, the model's name and version, and the caller's id in both places."""
    reply = asked(make_front(), "ModelInfer", infer(2.0, 5.0, model_name="flights"), x_request_id="mine")
    response = message("ModelInfer", reply)
    assert (reply.code, list(response.outputs[0].contents.fp64_contents)) == (OK, [4.0, 10.0])
    assert (response.model_name, response.model_version, response.id) == ("flights", "7", "mine")
    assert dict(reply.metadata) == {"x-request-id": "mine", "x-model-version": "7"}


def test_the_messages_own_id_names_the_request_where_no_metadata_does():
    """Metadata wins; an id that could not stand in a header is replaced in metadata, and repeated in the message."""
    front = make_front()
    reply = asked(front, "ModelInfer", infer(2.0, id="own"))
    assert dict(reply.metadata)["x-request-id"] == "own"
    assert (
        dict(asked(front, "ModelInfer", infer(2.0, id="own"), x_request_id="mine").metadata)["x-request-id"] == "mine"
    )
    reply = asked(front, "ModelInfer", infer(2.0, id="two\nlines"))
    assert dict(reply.metadata)["x-request-id"].isprintable()
    assert message("ModelInfer", reply).id == "two\nlines"


@pytest.mark.parametrize(
    ("body", "code", "word", "field"),
    [
        (b"\xff\xff", INVALID, "not_protobuf", None),
        (b"", INVALID, "invalid_rows", None),
        (infer(2.0, origin="LGA"), INVALID, "invalid_rows", "origin"),
        (infer(float("nan")), INVALID, "invalid_rows", "distance"),
        (infer(1e300), INVALID, "not_finite", None),
        (infer(2.0, model_name="other"), NOT_FOUND, "not_found", None),
        (infer(2.0, model_version="9"), NOT_FOUND, "unknown_version", None),
        (infer(2.0, model_version="latest"), NOT_FOUND, "unknown_version", None),
        (infer(*[1.0] * 5), EXHAUSTED, "too_many_rows", None),
        (infer(*[1.0] * 500), EXHAUSTED, "body_too_large", None),
        (infer(666.0), INTERNAL, "model_error", None),
    ],
    ids=str,
)
def test_a_refusal_is_a_status_with_the_one_error_as_its_details(body, code, word, field):
    """No body, the fitting code, and the error that any protocol gives, with the id to quote."""
    reply = asked(make_front(Limits(max_rows=4, max_body_bytes=4000)), "ModelInfer", body, x_request_id="mine")
    assert (reply.code, error(reply)["code"], error(reply)["field"]) == (code, word, field)
    assert json.loads(reply.details)["request_id"] == dict(reply.metadata)["x-request-id"] == "mine"
    assert reply.body == b""
    assert "devil" not in reply.details


def test_every_method_but_infer_answers_an_empty_request():
    """Health, and what the model is."""
    front = make_front()
    assert message("ServerLive", asked(front, "ServerLive")).live
    assert message("ServerReady", asked(front, "ServerReady")).ready
    assert message("ModelReady", asked(front, "ModelReady")).ready
    assert "binary_tensor_data" in message("ServerMetadata", asked(front, "ServerMetadata")).extensions
    told = message("ModelMetadata", asked(front, "ModelMetadata"))
    assert (told.name, list(told.versions)) == ("flights", ["7"])
    assert [item.name for item in told.inputs] == ["distance", "wind", "origin"]


def test_a_cold_front_lives_and_is_not_ready():
    """Before it has answered its own example."""
    cold = front_of(FakeModel())
    assert message("ServerLive", asked(cold, "ServerLive")).live
    assert not message("ServerReady", asked(cold, "ServerReady")).ready
    assert not message("ModelReady", asked(cold, "ModelReady")).ready


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata"])
def test_another_model_or_version_is_not_found(method):
    """Also where only health is asked."""
    front = make_front()
    for names, word in (({"name": "other"}, "not_found"), ({"name": "flights", "version": "8"}, "unknown_version")):
        reply = asked(front, method, request_class(method)(**names).SerializeToString())
        assert (reply.code, error(reply)["code"]) == (NOT_FOUND, word)
    reply = asked(front, method, request_class(method)(name="flights", version="7").SerializeToString())
    assert reply.code == OK
    assert asked(front, method, b"\xff").code == INVALID


def test_a_version_that_can_be_asked_is_ready_and_described():
    """Without the right to choose one, which asking it needs."""
    front = keyed_front(traffic=Traffic(standing=(8,)))
    of_8 = {"name": "flights", "version": "8"}
    reply = asked(front, "ModelReady", request_class("ModelReady")(**of_8).SerializeToString())
    assert message("ModelReady", reply).ready
    body = request_class("ModelMetadata")(**of_8).SerializeToString()
    told = message("ModelMetadata", asked(front, "ModelMetadata", body, x_api_key=SECRET))
    assert (told.platform, list(told.versions)) == ("that of 8", ["7", "8"])
    assert list(message("ModelMetadata", asked(front, "ModelMetadata", x_api_key=SECRET)).versions) == ["7", "8"]
    other = request_class("ModelReady")(version="9").SerializeToString()
    assert asked(front, "ModelReady", other).code == UNAUTHENTICATED
    reply = asked(front, "ModelReady", other, x_api_key=SECRET)
    assert error(reply)["message"].endswith("live versions: 7, 8")


def test_two_pins_are_no_choice():
    """As over HTTP."""
    front = make_front(settings=Settings(traffic=Traffic(standing=(8,))), peers=OtherVersions())
    pins = [("x-raymlops-version", "8"), ("x-raymlops-version", b"7")]
    reply = asyncio.run(call(front, "ModelInfer", infer(2.0), pins))
    assert (reply.code, error(reply)["code"]) == (INVALID, "several_versions")
    assert asyncio.run(call(front, "ModelInfer", infer(2.0), pins[:1] * 2)).code == OK
    assert error(asked(front, "ModelInfer", infer(2.0), x_raymlops_version="8\xa0"))["code"] == "unknown_version"


def test_an_unknown_method_is_unimplemented():
    """Nothing else is offered, and saying so is no request to the model."""
    records = []
    reply = asked(make_front(record=records.append), "RepositoryIndex")
    assert (reply.code, records) == (UNIMPLEMENTED, [])


def test_a_key_is_asked_for_as_over_http():
    """In either place, also as bytes; without one, and with a forged one, there is nothing but health."""
    front = keyed_front()
    assert asked(front, "ModelInfer", infer(2.0), x_api_key=SECRET).code == OK
    assert asked(front, "ModelInfer", infer(2.0), authorization=f"Bearer {SECRET}".encode()).code == OK
    for metadata in ({}, {"x_api_key": SECRET[:-1]}, {"authorization": "Bearer \u00e9"}):
        assert asked(front, "ModelInfer", infer(2.0), **metadata).code == UNAUTHENTICATED
        assert asked(front, "ModelInfer", b"\xff", **metadata).code == UNAUTHENTICATED
        assert asked(front, "ModelMetadata", **metadata).code == UNAUTHENTICATED
    for method in set(METHODS) - {"ModelInfer", "ModelMetadata"}:
        assert asked(front, method).code == OK


def test_a_caller_above_its_rate_is_told_when_to_come_again():
    """RESOURCE_EXHAUSTED, with the seconds in metadata."""
    front = keyed_front(rate=0.001)
    assert asked(front, "ModelInfer", infer(2.0), x_api_key=SECRET).code == OK
    reply = asked(front, "ModelInfer", infer(2.0), x_api_key=SECRET)
    assert (reply.code, error(reply)["code"]) == (EXHAUSTED, "rate_limited")
    assert float(dict(reply.metadata)["retry-after"]) > 900


def test_a_message_may_name_the_version_that_answers():
    """Another one needs the right to choose; the champion's own number does not, and keeps a canary away.

    Whichever it names, chance did not choose it.
    """
    traffic = Traffic(canaries=(Share(8, 1.0),), standing=(8,))
    peers = OtherVersions()
    records = []
    front = make_front(settings=Settings(traffic=traffic), peers=peers, record=records.append)
    for names, version in (({}, "8"), ({"model_version": "7"}, "7"), ({"model_version": "8"}, "8")):
        reply = asked(front, "ModelInfer", infer(2.0, **names))
        assert dict(reply.metadata)["x-model-version"] == version == message("ModelInfer", reply).model_version
    assert [record.route for record in records] == ["canary", "pinned", "pinned"]
    keyed = keyed_front(traffic=traffic, peers=peers)
    assert asked(keyed, "ModelInfer", infer(2.0, model_version="7"), x_api_key=SECRET).code == OK
    assert asked(keyed, "ModelInfer", infer(2.0, model_version="8"), x_api_key=SECRET).code == DENIED
    assert asked(keyed, "ModelInfer", infer(2.0), x_api_key=SECRET, x_raymlops_version="7").code == DENIED


def test_a_call_that_arrived_too_long_ago_is_not_computed():
    """The index, which handed it on, says when it came."""
    front = make_front(limits=Limits(timeout_s=30.0))
    calls = list(front.handler.model.calls)
    machine, now = stamp()
    late, early = (with_stamp([], (machine, now - age_s)) for age_s in (31.0, 5.0))
    reply = asyncio.run(call(front, "ModelInfer", infer(2.0), late))
    assert (reply.code, error(reply)["code"]) == (LATE, "timeout")
    assert front.handler.model.calls == calls
    assert asyncio.run(call(front, "ModelInfer", infer(2.0), early)).code == OK


def test_a_late_answer_and_a_full_queue_have_their_statuses():
    """DEADLINE_EXCEEDED and UNAVAILABLE, both worth another try."""

    class Slow(FakeModel):
        def predict(self, columns):
            if len(columns["distance"]) > 100:
                time.sleep(0.2)
            return super().predict(columns)

    front = front_of(Slow(), limits=Limits(timeout_s=0.05, max_waiting_rows=1))
    front.warm_up()

    async def together() -> list[GrpcReply]:
        body = infer(*[1.0] * 3000)
        return list(await asyncio.gather(*(call(front, "ModelInfer", body, []) for _ in range(3))))

    replies = asyncio.run(together())
    assert {reply.code for reply in replies} == {LATE, UNAVAILABLE}
    assert all("retry-after" in dict(reply.metadata) for reply in replies)
    front.handler.close()


def test_a_full_replica_does_not_parse():
    """UNAVAILABLE for what is no message at all."""
    front = make_front(settings=Settings(limits=Limits(max_waiting_rows=10)))
    front.handler.batcher.waiting_rows = 10
    assert asked(front, "ModelInfer", b"\xff").code == UNAVAILABLE


def test_what_was_asked_is_recorded_with_its_protocol():
    """Calls to the model alone; what was refused has its status as over HTTP."""
    records = []
    front = make_front(record=records.append)
    asked(front, "ModelInfer", infer(2.0, 3.0), x_request_id="mine")
    asked(front, "ModelInfer", b"\xff")
    asked(front, "ModelMetadata")
    assert [(item.protocol, item.status, item.rows) for item in records] == [("grpc", 200, 2), ("grpc", 400, 0)]
    assert records[0].request_id == "mine"
    assert records[0].body_bytes == len(infer(2.0, 3.0))


def test_a_call_is_answered_whatever_breaks_within(caplog):
    """INTERNAL, with the one error as its details."""

    def fail(*_):
        raise ArithmeticError

    front = make_front()
    front.handler.refusal = fail
    reply = asked(front, "ModelInfer", b"\xff")
    assert (reply.code, error(reply)["code"]) == (INTERNAL, "internal")
    assert "ArithmeticError" in caplog.text


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata"])
def test_a_question_is_no_larger_than_a_body_may_be(method):
    """It is not read, whatever it asks."""
    front = make_front(Limits(max_body_bytes=10))
    assert [asked(front, method, b"\xff" * size).code for size in (11, 10)] == [EXHAUSTED, INVALID]


def test_a_caller_without_a_key_is_told_so_before_the_size_of_its_message():
    """As over HTTP."""
    front = make_front(settings=Settings(access=Access(required=True), limits=Limits(max_body_bytes=10)))
    assert asked(front, "ModelInfer", infer(2.0)).code == UNAUTHENTICATED
