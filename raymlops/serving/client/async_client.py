"""``client`` for asyncio: the same calls, deadline and retries, without a blocked thread.

Owns how requests are sent and awaited in an event loop, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx
from tenacity import AsyncRetrying

from raymlops.serving.client import calls
from raymlops.serving.client.client import CONNECTIONS, BaseClient, failure_of, reply_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.serving.client.calls import Accepted, Answer, Call, Rows
    from raymlops.serving.client.retry import Budget, Failure, Reply

T = TypeVar("T")


class AsyncClient(BaseClient[httpx.AsyncBaseTransport, Awaitable[None]]):
    """Client of the models of one endpoint, for asyncio. An asynchronous context manager; for one event loop.

    Takes the arguments of ``Client``, and each method those of its namesake.

    Raises:
        UsageError: as ``Client``.
    """

    async def predict(
        self,
        name: str,
        rows: Rows,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
        session: str | None = None,
        version: int | str | None = None,
    ) -> Answer:
        """Predict rows, as ``Client.predict``."""
        call = calls.predict_call(name, rows, request_id=request_id, session=session, version=version)
        return await self._call(call, timeout_s)

    async def feedback(
        self,
        name: str,
        labels: Sequence[Mapping[str, Any]],
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Accepted:
        """Send the true labels of earlier predictions, as ``Client.feedback``."""
        return await self._call(calls.feedback_call(name, labels, request_id=request_id), timeout_s)

    async def describe(self, name: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return a model's facts, as ``Client.describe``."""
        return await self._call(calls.describe_call(name), timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return the live models, as ``Client.models``."""
        return await self._call(calls.models_call(), timeout_s)

    async def close(self) -> None:
        """Close the idle connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _connect(self, transport: httpx.AsyncBaseTransport | None) -> None:
        self._http = httpx.AsyncClient(
            headers=self._headers, transport=transport, limits=CONNECTIONS, trust_env=False, verify=self._verify
        )

    async def _call(self, call: Call[T], timeout_s: float | None) -> T:
        budget = self._budget(timeout_s)
        retrying = AsyncRetrying(sleep=self._sleep or asyncio.sleep, **budget.options())
        outcome: Reply | Failure = await retrying(self._send, call, budget)
        attempts = retrying.statistics["attempt_number"]
        return calls.result(call, outcome, attempts=attempts, base_url=self.base_url, timeout_s=budget.timeout_s)

    async def _send(self, call: Call[Any], budget: Budget) -> Reply | Failure:
        timeout_s = budget.attempt_s()
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._http.send(self._request(self._http, call, timeout_s=timeout_s))
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError, TimeoutError) as error:
            return failure_of(error, self._http)
        return reply_of(response, response.content)
