"""Copies of answered requests to shadow versions, in background tasks of the event loop.

Owns how many copies may be in flight, and how far a shadow's answer is from the caller's. Knows nothing of traffic
weights (see ``traffic``); a caller never waits for a shadow.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from raymlops.arrays import Columns
    from raymlops.predictions.served import RequestRecord
    from raymlops.serving.refusal import Refusal
    from raymlops.serving.request import Exchange


class Shadows:
    """Send copies to shadow versions and record what they answer. Use from one event loop.

    ``ask(version, columns, rows=n)`` returns a version's outputs and the seconds of its model; ``refusal`` turns what
    it raises into the status to record.
    """

    def __init__(
        self,
        ask: Callable[..., Awaitable[tuple[Columns, float]]],
        *,
        record: Callable[[RequestRecord], None],
        refusal: Callable[[Exception, str], Refusal],
    ) -> None:
        self.dropped: Counter[int] = Counter()
        """Copies that were not sent, by version, since too many were in flight."""
        self._in_flight: Counter[int] = Counter()
        self._ask = ask
        self._record = record
        self._refusal = refusal
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, version: int, exchange: Exchange, *, max_in_flight: int, timeout_s: float) -> None:
        """Start to send a copy of an answered request, or count it as dropped."""
        if self._in_flight[version] >= max_in_flight:
            self.dropped[version] += 1
            return
        self._in_flight[version] += 1
        task = asyncio.get_running_loop().create_task(self._copy(version, exchange, timeout_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _copy(self, version: int, exchange: Exchange, timeout_s: float) -> None:
        assert exchange.columns is not None
        assert exchange.outputs is not None
        start = time.perf_counter()
        outputs: Columns | None = None
        status, code, seconds, difference = 200, "", 0.0, None
        try:
            async with asyncio.timeout(timeout_s):
                outputs, seconds = await self._ask(version, exchange.columns, rows=exchange.rows)
            difference = largest_difference(exchange.outputs, outputs)
        except Exception as error:
            refusal = self._refusal(error, exchange.request_id)
            status, code = refusal.status, refusal.code
        finally:
            self._in_flight[version] -= 1
        self._record(
            exchange.served(status, code)._replace(
                version=version,
                route="shadow",
                seconds=time.perf_counter() - start,
                model_seconds=seconds,
                fallback_from=None,
                fallback_code=None,
                outputs=outputs,
                difference=difference,
            )
        )


def largest_difference(one: Columns, other: Columns) -> float:
    """Return the largest absolute difference of two answers' numbers; infinite where anything else differs."""
    if one.keys() != other.keys():
        return float("inf")
    largest = 0.0
    for name, array in one.items():
        second = other[name]
        if array.shape != second.shape or not {array.dtype.kind, second.dtype.kind} <= set("fiub"):
            if not _same(array, second):
                return float("inf")
        elif array.size:
            gap = np.abs(array.astype(np.float64) - second.astype(np.float64))
            missing = np.isnan(array) != np.isnan(second) if array.dtype.kind == "f" else np.zeros(1, dtype=bool)
            largest = float("inf") if missing.any() else max(largest, float(np.nan_to_num(gap).max()))
    return largest


def _same(one: Any, other: Any) -> bool:
    return one.shape == other.shape and all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b or (a != a and b != b)  # noqa: PLR0124 - NaT
        for a, b in zip(one, other, strict=True)
    )
