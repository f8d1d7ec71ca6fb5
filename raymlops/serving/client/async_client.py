"""``client`` for asyncio: the same questions, deadline and repeats, without a blocked thread.

Owns how requests are sent and waited for in an event loop, and nothing else.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx

from raymlops.serving.client import calls
from raymlops.serving.client.client import CONNECTIONS, Settings, check_open, failure_of, reply_of, request_of
from raymlops.serving.client.retry import Failure, Pause, Reply, attempts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from raymlops.serving.client.calls import Answer, Call, Rows

T = TypeVar("T")


class AsyncClient:
    """Ask the models of one endpoint from asyncio. An asynchronous context manager; for one event loop.

    Arguments and promises are those of ``Client``, and each method's are those of its namesake.

    Raises:
        UsageError: as ``Client``.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: int | None = None,
        attempt_timeout_s: float | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = Settings(
            base_url, api_key=api_key, timeout_s=timeout_s, retries=retries, attempt_timeout_s=attempt_timeout_s
        )
        self._clock, self._sleep, self._rng = clock, sleep, rng or random.Random()  # noqa: S311 - spreads load
        self._http = httpx.AsyncClient(
            headers=self._settings.headers, transport=transport, limits=CONNECTIONS, trust_env=False
        )

    @property
    def base_url(self) -> str:
        """Return where it asks."""
        return self._settings.base_url

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
        """Ask a model for these rows, as ``Client.predict``."""
        call = calls.predict_call(name, rows, request_id=request_id, session=session, version=version)
        return await self._ask(call, timeout_s)

    async def feedback(
        self,
        name: str,
        labels: Sequence[Mapping[str, Any]],
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Tell what really happened, as ``Client.feedback``."""
        return await self._ask(calls.feedback_call(name, labels, request_id=request_id), timeout_s)

    async def describe(self, name: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return what a model is, as ``Client.describe``."""
        return await self._ask(calls.describe_call(name), timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return what is live, as ``Client.models``."""
        return await self._ask(calls.models_call(), timeout_s)

    async def close(self) -> None:
        """Close the connections that were kept."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    async def _ask(self, call: Call[T], timeout_s: float | None) -> T:
        settings = self._settings
        total_s = settings.deadline_s(timeout_s)
        steps = attempts(settings.policy, timeout_s=total_s, clock=self._clock, rng=self._rng)
        outcome: Reply | Failure | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as last:
                return calls.result(call, last.value, base_url=settings.base_url, timeout_s=total_s)
            if isinstance(step, Pause):
                await self._sleep(step.seconds)
                outcome = None
            else:
                outcome = await self._send(call, step.timeout_s)

    async def _send(self, call: Call[Any], timeout_s: float) -> Reply | Failure:
        check_open(self._http)
        try:
            async with asyncio.timeout(timeout_s):
                request = request_of(self._http, call, base_url=self.base_url, timeout_s=timeout_s)
                response = await self._http.send(request)
        except TimeoutError:
            return Failure("late", "it answered too slowly")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return failure_of(error)
        except RuntimeError:
            check_open(self._http)  # it was closed meanwhile
            raise
        return reply_of(response, response.content)
