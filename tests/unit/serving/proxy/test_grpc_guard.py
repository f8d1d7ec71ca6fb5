"""The guard of gRPC calls, in Serve's own server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from hashlib import sha256

import grpc
import pytest
from ray.serve._private import grpc_util
from ray.serve.config import gRPCOptions

from raymlops.cluster.ports import free_port
from raymlops.serving.auth import Access, Guard, KeyEntry
from raymlops.serving.proxy.bounds import Bounds, KnownBounds
from raymlops.serving.proxy.grpc_guard import SLOW_MESSAGES, GrpcGuard, SlowPlaces, guard_grpc_calls
from raymlops.serving.refusal import Refusal

METHOD = "/inference.GRPCInferenceService/ModelInfer"
SECRET = f"rk_good_{'g' * 43}"
KEY = KeyEntry("good", sha256(SECRET.encode()).hexdigest(), frozenset({"predict"}))


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Put back what the test replaces."""
    monkeypatch.setattr(grpc_util, "DEFAULT_GRPC_SERVER_OPTIONS", grpc_util.DEFAULT_GRPC_SERVER_OPTIONS)
    name = "_override_method_handler"
    monkeypatch.setattr(grpc_util.gRPCGenericServer, name, getattr(grpc_util.gRPCGenericServer, name))


def knowing(*guards, most=None):
    known = KnownBounds()
    known.guards = lambda: guards
    known.most_message_bytes = most
    return known


CLOSED = Guard(Access(required=True, keys=(KEY,)))


async def echo(request, context):
    return bytes(request)


@contextlib.asynccontextmanager
async def channel(handler=echo, **options):
    """Yield a channel to Serve's own server, with this handler of all calls and no compression by itself."""
    port = free_port()
    servicer = "raymlops.serving.protocols.grpc_messages:add_servicer"
    serve = gRPCOptions(port=port, enable_reflection=False, grpc_servicer_functions=[servicer])
    _, server = await grpc_util.start_grpc_server(lambda **_: handler, serve, event_loop=asyncio.get_running_loop())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", **options) as opened:
        yield opened
    await server.stop(0)


async def never():
    await asyncio.Event().wait()
    yield b""


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def test_a_compressed_message_is_refused_unread():
    """Sixty megabytes of zeros are sixty kilobytes on the wire."""
    guard_grpc_calls(GrpcGuard(known=KnownBounds()))
    got = []

    async def handler(request, context):
        got.append(len(request))
        return b""

    async def scenario():
        async with channel(handler) as opened:
            call = opened.unary_unary(METHOD)
            error = await refused(call(bytes(60_000_000), compression=grpc.Compression.Gzip))
            await call(bytes(60))
            return error.code()

    assert asyncio.run(scenario()) == grpc.StatusCode.UNIMPLEMENTED
    assert got == [60]


def test_a_message_is_no_larger_than_the_largest_body():
    """Of a model in this process; the rest is given back at once."""
    guard_grpc_calls(GrpcGuard(known=knowing(most=1_000)))

    async def scenario():
        async with channel() as opened:
            call = opened.unary_unary(METHOD)
            assert len(await call(bytes(1_000))) == 1_000
            return (await refused(call(bytes(1_001)))).code()

    assert asyncio.run(scenario()) == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_key_is_asked_for_before_the_first_byte_of_the_message():
    """A call that never sends one is refused at once; a health check needs no key."""
    guard_grpc_calls(GrpcGuard(known=knowing(CLOSED)))

    async def scenario():
        async with channel() as opened:
            call = opened.stream_unary(METHOD)
            for metadata in ((), (("x-api-key", SECRET[:-1] + "x"),)):
                error = await refused(call(never(), metadata=metadata))
                assert error.code() == grpc.StatusCode.UNAUTHENTICATED
                assert json.loads(error.details())["error"]["code"] == "unauthenticated"
            assert await opened.unary_unary(METHOD)(b"in", metadata=(("x-api-key", SECRET),)) == b"in"
            return await opened.unary_unary(METHOD.replace("ModelInfer", "ModelReady"))(b"ready")

    assert asyncio.run(scenario()) == b"ready"


@pytest.mark.parametrize(
    ("guards", "secret", "key_id"),
    [
        ((CLOSED,), SECRET, "good"),
        ((CLOSED, Guard()), None, None),
        ((Guard(), CLOSED), SECRET, "good"),
        ((), SECRET, None),
    ],
)
def test_a_call_needs_a_key_of_any_model_of_its_process(guards, secret, key_id):
    """Its message names the one; where no keys are known, a replica looks."""
    assert knowing(*guards).key_of("", secret) == key_id


def test_a_process_without_keys_goes_by_the_last_answer():
    """The Python proxy knows that a model requires a key, and none of its keys."""
    known = KnownBounds()
    known.record("m", Bounds(1.0, 1_000, key_required=True))
    assert known.key_of("m", SECRET) is None
    assert known.key_of("other", None) is None
    with pytest.raises(Refusal) as caught:
        known.key_of("m", None)
    assert caught.value.status == 401


@pytest.mark.parametrize(
    ("slow_s", "code"), [(60.0, grpc.StatusCode.UNAVAILABLE), (0.01, grpc.StatusCode.DEADLINE_EXCEEDED)]
)
def test_messages_that_are_never_complete_have_a_few_places_for_a_while(slow_s, code):
    """One more than there are places is refused at once, each of them in the end; a whole one is answered beside."""
    guard_grpc_calls(GrpcGuard(known=KnownBounds(), quick_s=0.01, slow_s=slow_s))

    async def scenario():
        async with channel() as opened:
            count = SLOW_MESSAGES + 1 if slow_s > 1 else 1
            calls = [opened.stream_unary(METHOD)(never()) for _ in range(count)]
            tasks = [asyncio.ensure_future(call.code()) for call in calls]
            done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            whole = await opened.unary_unary(METHOD)(b"whole")
            for task in waiting:
                task.cancel()
        return {task.result() for task in done}, whole

    assert asyncio.run(scenario()) == ({code}, b"whole")


@pytest.mark.parametrize("metadata", [(("x-api-key", SECRET),), (("x-forwarded-for", "192.0.2.1, 10.0.0.9"),)])
def test_slow_messages_without_a_key_take_no_place_of_others(metadata):
    """All places of one address are taken; a key, and another address by the proxy's word, have their own."""
    guard_grpc_calls(GrpcGuard(known=knowing(CLOSED, Guard()), quick_s=0.01))

    async def scenario():
        async with channel() as opened:
            call = opened.stream_unary(METHOD)
            held = [call(never(), metadata=(("x-forwarded-for", "10.0.0.1"),)) for _ in range(SLOW_MESSAGES + 1)]
            codes = [asyncio.ensure_future(one.code()) for one in held]
            await asyncio.wait(codes, return_when=asyncio.FIRST_COMPLETED)
            begun, rest = asyncio.Event(), asyncio.Event()

            async def slow():
                begun.set()
                await rest.wait()
                yield b"late"

            good = asyncio.ensure_future(_of(call(slow(), metadata=metadata)))
            await begun.wait()
            await asyncio.wait({good}, timeout=0.1)  # longer than what is quick
            rest.set()
            answer = await good
            for code in codes:
                code.cancel()
            return answer

    assert asyncio.run(scenario()) == b"late"


async def _of(call):
    return await call


def test_where_all_places_are_taken_the_caller_with_most_loses_its_oldest():
    """Callers without a key lose theirs before one with a key does; a newcomer that has most is turned away."""

    async def scenario():
        places = SlowPlaces()
        first, second, third = (places.take((True, "10.0.0.1")) for _ in range(3))
        other = places.take((True, "10.0.0.2"))
        assert [one.done() for one in (first, second, third, other)] == [False] * 4
        with pytest.raises(Refusal):
            places.take((True, "10.0.0.1"))
        keyed = [places.take((False, "key"))]
        assert [one.done() for one in (first, second, third, other)] == [True, False, False, False]
        keyed += [places.take((False, "key")) for _ in range(3)]
        assert all(one.done() for one in (first, second, third, other))
        with pytest.raises(Refusal):
            places.take((True, "10.0.0.3"))
        another = places.take((False, "new"))
        assert [one.done() for one in (*keyed, another)] == [True, False, False, False, False]

    asyncio.run(scenario())


def test_calls_hold_a_bounded_number_of_bytes_and_list_no_applications():
    """Serve's own server, with a handler that waits: a message that does not fit is refused, until others are done."""
    guard_grpc_calls(GrpcGuard(known=KnownBounds(), most=100))
    guard_grpc_calls(GrpcGuard(known=KnownBounds(), most=1))

    async def serve():
        held, released = asyncio.Semaphore(0), asyncio.Event()

        async def handler(request, context):
            held.release()
            await released.wait()
            return bytes(request)

        async with channel(handler) as opened:

            def call(size, method="inference.GRPCInferenceService/ModelInfer"):
                return opened.unary_unary(f"/{method}")(bytes(size))

            waiting = [call(40), call(40)]
            for _ in waiting:
                await held.acquire()
            with pytest.raises(grpc.aio.AioRpcError) as full:
                await call(21)
            small = call(20)
            await held.acquire()
            with pytest.raises(grpc.aio.AioRpcError) as listed:
                await call(0, "ray.serve.RayServeAPIService/ListApplications")
            released.set()
            sizes = [len(await one) for one in (*waiting, small, call(100))]
        return sizes, full.value, listed.value

    sizes, full, listed = asyncio.run(serve())
    assert sizes == [40, 40, 20, 100]
    assert full.code() == grpc.StatusCode.UNAVAILABLE
    assert json.loads(full.details())["error"]["code"] == "overloaded"
    assert listed.code() == grpc.StatusCode.PERMISSION_DENIED
