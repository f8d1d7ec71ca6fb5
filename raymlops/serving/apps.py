"""The applications that a Serve config names by import path, and the replicas that run them.

Owns what happens between Serve and the ASGI front: building, loading a verified bundle, warming up,
reconfiguring, health. Knows nothing of HTTP (see ``front``, ``index``), of the desired state or of registries.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from starlette.responses import Response

from raymlops.serving.front import Front, Identity
from raymlops.serving.index import Index
from raymlops.serving.reading import Limits
from raymlops.serving.render import DEPLOYMENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray.serve import Application
    from starlette.requests import Request

    from raymlops.serving.asgi import Receive, Reply, Scope, Send


def model_app(args: dict[str, Any]) -> Application:
    """Build the application of one model version.

    ``args`` holds ``bundle_uri``, ``digest``, ``name``, ``version`` and ``run_id`` and never changes for a version: a
    changed value would restart its replicas. What may change comes as ``user_config``.
    """
    return ModelReplica.bind(dict(args))  # type: ignore[attr-defined]


def index_app(args: dict[str, Any]) -> Application:  # noqa: ARG001 - Serve passes args to every builder
    """Build the application at ``/``, which lists the models it is given as ``user_config``."""
    return IndexReplica.bind()  # type: ignore[attr-defined]


@serve.deployment(name=DEPLOYMENT)
class ModelReplica:
    """One model version in a process of its own."""

    def __init__(self, args: Mapping[str, Any]) -> None:
        from raymlops.bundle.load import load

        # The digest comes from the desired state, never from the bundle: load refuses files that do not match it.
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        model = load(args["bundle_uri"], args["digest"], exclusive=True, device=device)
        identity = Identity(
            name=args["name"], version=int(args["version"]), digest=args["digest"], run_id=args["run_id"]
        )
        self._front = Front(model, identity=identity)
        _use_threads(self._front.limits.threads)
        self._front.warm_up()

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take new limits; called once before the replica is ready, and whenever they change."""
        limits = Limits(**{key: user_config[key] for key in Limits.__dataclass_fields__ if key in user_config})
        _use_threads(limits.threads)
        self._front.configure(limits)

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        return _AsgiResponse(await self._front.reply(request.scope, request.receive))

    async def check_health(self) -> None:
        """Raise when a batch has been running for so long that only a new process will help."""
        if self._front.stuck:
            msg = "a batch has been running for more than twice the deadline of a request"
            raise RuntimeError(msg)

    def __del__(self) -> None:
        if hasattr(self, "_front"):
            self._front.close()


@serve.deployment(name=DEPLOYMENT)
class IndexReplica:
    """The list of models."""

    def __init__(self) -> None:
        self._index = Index()

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take a new list of models."""
        self._index.configure(user_config.get("models", []))

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        return _AsgiResponse(self._index.reply(request.scope))


class _AsgiResponse(Response):
    """A finished answer: two messages, without Starlette's header handling, which costs more than the front's own."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        await send({"type": "http.response.start", "status": self._reply.status, "headers": self._reply.headers})
        await send({"type": "http.response.body", "body": self._reply.body})


def _use_threads(threads: int) -> None:
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
