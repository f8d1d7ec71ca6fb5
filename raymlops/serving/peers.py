"""The other versions of a model, reached by Serve's handles.

Owns the handles and what their errors mean. A handle is made when it is first used, and asks Serve for nothing then: a
version that is not up makes its requests wait, for as long as the caller lets them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from raymlops.serving.reading import Refusal
from raymlops.serving.render import DEPLOYMENT, app_name

if TYPE_CHECKING:
    from collections.abc import Collection

    from raymlops.signature import Columns


class ServePeers:
    """Ask the other versions of one model, from one event loop; ``keep`` may be called from any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handles: dict[int, DeploymentHandle[Any]] = {}

    async def ask(self, version: int, columns: Columns, *, rows: int) -> tuple[Columns, float]:
        """Return another version's output columns, and the seconds that its model took.

        Raises:
            Exception: what that version raised.
            Refusal: 503, it cannot be reached.
        """
        try:
            answer: tuple[Columns, float] = await self.handle(version).answer.remote(dict(columns), rows)
        except RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except BackPressureError as error:
            raise Refusal(503, "overloaded", f"version {version} has too many requests", retry_after_s=1.0) from error
        except (RayError, RayServeException) as error:
            raise Refusal(
                503,
                "version_unavailable",
                f"version {version} does not answer: {type(error).__name__}",
                retry_after_s=1.0,
            ) from error
        else:
            return answer

    def handle(self, version: int) -> DeploymentHandle[Any]:
        """Return the handle of a version's replicas."""
        handle = self._handles.get(version)
        if handle is None:
            handle = self._handles[version] = DeploymentHandle(DEPLOYMENT, app_name(self._name, version))
        return handle

    def keep(self, versions: Collection[int]) -> None:
        """Let go of the handles of all other versions, each of which Serve keeps up to date for as long as it lives."""
        self._handles = {version: handle for version, handle in dict(self._handles).items() if version in versions}
