"""Calls to the other versions of a model, by Serve's handles.

Owns the handles and the meaning of their errors. A handle is created when it is first used, without a call to Serve:
requests for a version that is not up wait until the caller's timeout.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from raymlops.serving.auth import KEY_HEADERS
from raymlops.serving.names import DEPLOYMENT, app_name, route_of
from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from raymlops.arrays import Columns
    from raymlops.serving.asgi import Reply

LARGE_BYTES = 64_000
"""Above it, the copies of a message cost more than the object store."""


class ServePeers:
    """Call the other versions of one model, from one event loop; ``keep`` may be called from any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handles: dict[tuple[int, bool], DeploymentHandle[Any]] = {}

    async def ask(self, version: int, columns: Columns, *, rows: int) -> tuple[Columns, float]:
        """Return another version's output columns, and the seconds that its model took.

        Raises:
            Exception: what that version raised.
            Refusal: 503, it cannot be reached.
        """
        answer: tuple[Columns, float] = await self.call(version, "answer", dict(columns), rows)
        return answer

    async def metadata(self, version: int, headers: Mapping[bytes, bytes]) -> dict[str, Any]:
        """Return another version's metadata, as its own front returns it to the caller with these headers.

        Raises:
            Exception: what that version raised.
            Refusal: that of the version; 503, it cannot be reached.
        """
        path = f"{route_of(self._name)}/v2/models/{self._name}/versions/{version}"
        key = [(name, headers[name]) for name in KEY_HEADERS if name in headers]
        scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": key}
        reply: Reply = await self.call(version, "http_call", scope)
        data: dict[str, Any] = orjson.loads(reply.body)
        if reply.status >= 400:
            raise Refusal(reply.status, data["code"], f"version {version}: {data['message']}")
        return data

    async def call(self, version: int, method: str, *given: Any, size: int = 0) -> Any:
        """Call a method of a version's replicas, which is cancelled there when the caller is cancelled.

        What has a ``size`` of many bytes is passed through Ray's object store: a message of Serve's own is copied
        several times on the event loop of the replica that gets it.

        Raises:
            Exception: what that version raised.
            Refusal: 503, it cannot be reached.
        """
        try:
            response = getattr(self.handle(version, large=size > LARGE_BYTES), method).remote(*given)
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()  # nobody waits for it any more
                raise
        except RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except BackPressureError as error:
            message = f"version {version} of {self._name} has too many requests"
            raise Refusal(503, "overloaded", message, retry_after_s=1.0) from error
        except (RayError, RayServeException) as error:
            message = f"version {version} of {self._name} does not answer: {type(error).__name__}"
            raise Refusal(503, "version_unavailable", message, retry_after_s=1.0) from error

    def handle(self, version: int, *, large: bool = False) -> DeploymentHandle[Any]:
        """Return the handle of a version's replicas, or the one for large messages."""
        handle = self._handles.get((version, large))
        if handle is None:
            handle = DeploymentHandle(DEPLOYMENT, app_name(self._name, version))
            if large:
                handle = handle.options(_by_reference=True)
            self._handles[version, large] = handle
        return handle

    def keep(self, versions: Collection[int]) -> None:
        """Drop the handles of all other versions; Serve updates a handle as long as it exists."""
        self._handles = {key: handle for key, handle in dict(self._handles).items() if key[0] in versions}
