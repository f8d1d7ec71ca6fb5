"""Ray Serve applications, which a Serve config names by import path, and their replicas.

Owns what is between Serve and the fronts: building, loading a verified bundle, warm-up, reconfiguration, health checks.
Knows nothing of HTTP (see ``replica``, ``index``), of the desired state or of registries.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import sys
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from starlette.responses import Response

from raymlops.serving.arrival import from_client
from raymlops.serving.index.gateway import Gateway
from raymlops.serving.names import DEPLOYMENT
from raymlops.serving.protocols.grpc_messages import METHODS, Wire
from raymlops.serving.proxy import bounds as known_bounds
from raymlops.serving.proxy.bounds import INDEX, MAX_VALUES, Bounds, announcement
from raymlops.serving.proxy.serve_patches import look_up_proxies_late
from raymlops.serving.replica import memory
from raymlops.serving.replica.grpc_front import GrpcReply, call
from raymlops.serving.replica.handler import Identity, RequestHandler
from raymlops.serving.replica.http_front import Front
from raymlops.serving.replica.parse_pool import IMAGE_THREADS, THREADS, ParsePool
from raymlops.serving.replica.peers import ServePeers
from raymlops.serving.replica.recording import Recording
from raymlops.serving.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray.serve import Application
    from ray.serve.grpc_util import RayServegRPCContext
    from starlette.requests import Request

    from raymlops.arrays import Columns
    from raymlops.serving.asgi import Receive, Reply, Scope, Send


SWITCH_S = 0.0001
"""How long a thread that parses or predicts may keep the interpreter from the event loop, which gives it up for each
call of the system. With Python's 5 ms, a small request beside large ones waits for several times that."""


def model_app(args: dict[str, Any]) -> Application:
    """Build the application of one model version.

    ``args`` holds ``bundle_uri``, ``digest``, ``name``, ``version`` and ``run_id`` and never changes for a version: a
    changed value would restart its replicas. Settings that may change are in ``user_config``.
    """
    return ModelReplica.bind(dict(args))  # type: ignore[attr-defined]


def index_app(args: dict[str, Any]) -> Application:  # noqa: ARG001 - Serve passes args to every builder
    """Build the application at ``/``, which lists the models in its ``user_config``."""
    return IndexReplica.bind()  # type: ignore[attr-defined]


class _Callable:
    """The gRPC methods, by the names that Serve calls."""

    async def grpc_call(self, method: str, body: bytes, metadata: list[tuple[str, Any]]) -> GrpcReply:
        """Answer one call."""
        raise NotImplementedError


def _grpc_method(name: str) -> Any:
    async def method(self: _Callable, request: Any, grpc_context: RayServegRPCContext) -> Any:
        import grpc

        reply = await self.grpc_call(name, bytes(request), from_client(grpc_context.invocation_metadata()))
        grpc_context.set_trailing_metadata(list(reply.metadata))
        if reply.code:
            code = next(status for status in grpc.StatusCode if status.value[0] == reply.code)
            grpc_context.set_code(code)
            grpc_context.set_details(reply.details)
        return Wire(reply.body)

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"Answer {name} of the Open Inference Protocol."
    return method


for _name in METHODS:
    setattr(_Callable, _name, _grpc_method(_name))


@serve.deployment(name=DEPLOYMENT)
class ModelReplica(_Callable):
    """One model version in a process of its own."""

    def __init__(self, args: Mapping[str, Any]) -> None:
        from raymlops.bundle.load import load

        sys.setswitchinterval(SWITCH_S)
        look_up_proxies_late()
        # The digest comes from the desired state, never from the bundle: load refuses files that do not match it.
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        if device == "cuda":
            memory.keep_to_share(ray.get_runtime_context().get_assigned_resources().get("GPU", 1.0))
        model = load(args["bundle_uri"], args["digest"], exclusive=True, device=device)
        identity = Identity(
            name=args["name"], version=int(args["version"]), digest=args["digest"], run_id=args["run_id"]
        )
        self._model = model
        self._peers = ServePeers(identity.name)
        threads = IMAGE_THREADS if model.signature.has_images else THREADS
        self._handler = RequestHandler(model, identity, peers=self._peers, parsing=ParsePool(threads=threads))
        self._recording = Recording(self._handler, replica=serve.get_replica_context().replica_tag)
        self._handler.record = self._recording.add
        # By its module: Serve sends this class by value, and a copy of each object that it names.
        known_bounds.KNOWN.guard_of = {identity.name: self._handler.guard}.get
        known_bounds.KNOWN.guards = lambda: (self._handler.guard,)
        self._front = Front(self._handler)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Apply new settings; called once before the replica is ready, and whenever they change.

        Slow steps run in a thread, and the settings are applied in the loop, between two requests. The first call warms
        the model up, with the number of threads that it will serve with.
        """
        settings = Settings.from_dict(user_config)
        _use_threads(settings.threads)
        if not self._front.ready:
            await asyncio.to_thread(self._prepare, settings)
        await asyncio.to_thread(self._recording.configure, settings)
        self._handler.configure(settings)
        per_row, required = self._model.signature.values_per_row, settings.access.required
        self._bounds = Bounds.of(settings.limits, values_per_row=per_row, key_required=required)
        self._announced = announcement(self._handler.identity.name, self._bounds)
        known_bounds.KNOWN.record(self._handler.identity.name, self._bounds)
        known_bounds.KNOWN.most_message_bytes = settings.limits.max_body_bytes
        self._handler.batcher.in_worker(functools.partial(_use_threads, settings.threads))
        self._peers.keep(settings.traffic.standing)
        self._front.labels = self._recording.labels

    def _prepare(self, settings: Settings) -> None:
        _use_threads(settings.threads)
        if settings.compile:
            from raymlops.serving.replica.compile import compile_if_faster

            self._handler.use(dataclasses.replace(self._model, model=compile_if_faster(self._model)))
        self._handler.configure(settings)
        self._front.warm_up()
        self._front.expect_labels(self._model.loss, self._model.recipe.label_type)

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        reply = await self._front.reply(request.scope, request.receive)
        return _AsgiResponse(reply, self._announced)

    async def answer(self, columns: Columns, rows: int) -> tuple[Columns, float]:
        """Predict for another version's front."""
        # Arrays from another process may be read-only, which torch warns of.
        own = {name: array if array.flags.writeable else array.copy() for name, array in columns.items()}
        return await self._handler.answer(own, rows=rows)

    async def http_call(self, scope: dict[str, Any]) -> Reply:
        """Answer a request that the index forwards; its body is in the scope."""
        reply = await self._front.reply(scope, _nothing_more)
        most = self._bounds.max_values
        return (
            reply if most is None else dataclasses.replace(reply, headers=(*reply.headers, (MAX_VALUES, b"%d" % most)))
        )

    async def grpc_call(self, method: str, body: bytes, metadata: list[tuple[str, Any]]) -> GrpcReply:
        """Answer one gRPC call, also one that the index forwards, whose code may be of another release."""
        return await call(self._front, method, body, metadata)

    async def check_health(self) -> None:
        """Raise when a batch hangs or the memory is above its bound, so that Serve replaces the process."""
        if self._front.stuck:
            msg = "a batch has been running for more than twice the deadline of a request"
            raise RuntimeError(msg)
        memory.require_within(self._handler.settings.memory_bytes, when="while it serves")

    def __del__(self) -> None:
        if hasattr(self, "_front"):
            self._recording.close()
            self._handler.close()


@serve.deployment(name=DEPLOYMENT)
class IndexReplica(_Callable):
    """The list of models, and the gateway to each for clients that know only the host."""

    def __init__(self) -> None:
        self._gateway = Gateway()
        self._announced = announcement(INDEX, self._gateway.bounds)
        known_bounds.KNOWN.guard_of, known_bounds.KNOWN.guards = self._gateway.guard, self._gateway.guards

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Apply a new list of models."""
        self._gateway.configure(user_config.get("models", []))
        bounds = self._gateway.bounds
        self._announced = announcement(INDEX, bounds)
        known_bounds.KNOWN.record(INDEX, bounds)
        known_bounds.KNOWN.most_message_bytes = bounds.max_body_bytes

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        reply = await self._gateway.reply(request.scope, request.receive)
        return _AsgiResponse(reply, self._announced)

    async def grpc_call(self, method: str, body: bytes, metadata: list[tuple[str, Any]]) -> GrpcReply:
        """Forward one gRPC call to the model that it names."""
        return await self._gateway.grpc_call(method, body, metadata)


class _AsgiResponse(Response):
    """A finished response: two messages, without Starlette's header handling, which costs more than the front's own.

    The first one also carries the model's bounds for the process that accepted the request (see ``bounds``).
    """

    def __init__(self, reply: Reply, announced: Mapping[str, Any]) -> None:
        self._reply = reply
        self._announced = announced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        reply = self._reply
        start = {"type": "http.response.start", "status": reply.status, "headers": reply.headers}
        await send({**start, **self._announced})
        await send({"type": "http.response.body", "body": self._reply.body})


async def _nothing_more() -> dict[str, Any]:
    return {"type": "http.disconnect"}


def _use_threads(threads: int) -> None:
    """Set torch's number of threads for this thread; threads that have started keep theirs."""
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
