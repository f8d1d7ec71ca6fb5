"""The application at ``/``: its pages, and the hop from the host to each model for clients that know the host alone.

Owns how a request is handed to a model's champion, over HTTP and gRPC. Slower than a model's own route by that hop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from raymlops.serving.asgi import BODY, header_map, read_body, request_id_of
from raymlops.serving.exchange import HEADERS
from raymlops.serving.grpcfront import GrpcReply, refused
from raymlops.serving.index import Index
from raymlops.serving.peers import ServePeers
from raymlops.serving.protocols import grpc as form
from raymlops.serving.reading import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ray.serve.handle import DeploymentHandle

    from raymlops.serving.asgi import Receive, Reply, Scope
    from raymlops.serving.index import Target

MAX_BODY_BYTES = 64_000_000
"""What is read before a model's own limit is asked."""


class Gateway:
    """Answer what concerns the host, and hand on what is for one model. Use from one event loop."""

    def __init__(self) -> None:
        self._index = Index(self._forward)
        self._versions: dict[str, int] = {}
        self._peers: dict[str, ServePeers] = {}

    def configure(self, models: Sequence[Mapping[str, Any]]) -> None:
        """Take the list of champions."""
        self._index.configure(models)
        self._versions = {model["name"]: int(model["version"]) for model in models}

    async def reply(self, scope: Scope, receive: Receive) -> Reply:
        """Return the answer to one HTTP request."""
        return await self._index.answer(scope, receive)

    async def grpc_call(self, method: str, body: bytes, metadata: list[tuple[str, Any]]) -> GrpcReply:
        """Return the answer to one gRPC call."""
        try:
            if method == "ServerMetadata":
                return GrpcReply(form.server_metadata())
            if method in {"ServerLive", "ServerReady"}:
                return GrpcReply(form.ready(method, ready=True))
            name, _ = form.model_of(method, body)
            handle = self._champion(name)
            reply: GrpcReply = await _asked(name, handle.grpc_call.remote(method, body, metadata))
        except Refusal as refusal:
            given = next((value for key, value in metadata if key in {"x-request-id", "request_id"}), None)
            return refused(refusal, request_id_of(given.encode("latin-1", "replace") if given else None))
        else:
            return reply

    async def _forward(self, target: Target, scope: Scope, receive: Receive) -> Reply:
        handle = self._champion(target.name)
        body = await read_body(scope, receive, header_map(scope, HEADERS), limit=MAX_BODY_BYTES)
        inner = target.scope(scope)
        plain = {key: inner[key] for key in ("type", "method", "path", "root_path")}
        headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        reply: Reply = await _asked(target.name, handle.http_call.remote({**plain, "headers": headers, BODY: body}))
        return reply

    def _champion(self, name: str) -> DeploymentHandle[Any]:
        if name not in self._versions:
            known = ", ".join(sorted(self._versions)) or "none"
            raise Refusal(404, "not_found", f"no model {name[:80]!r}; models: {known}")
        return self._peers.setdefault(name, ServePeers(name)).handle(self._versions[name])


async def _asked(name: str, answer: Any) -> Any:
    try:
        return await answer
    except (RayError, RayServeException) as error:
        raise Refusal(
            503, "version_unavailable", f"{name} does not answer: {type(error).__name__}", retry_after_s=1.0
        ) from error
