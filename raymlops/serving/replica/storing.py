"""The wait of feedback for the storage of labels. It holds slots of a replica, of which most are for predictions.

Owns how many requests may wait for a storage that hangs. Pure: knows neither labels nor storages.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from concurrent.futures import Future

QUICK_S = 1.0
"""How long any number may wait: a storage takes the labels of many requests at once, within that time."""


class Storing:
    """The requests whose labels are being stored. For one event loop."""

    def __init__(self, *, quick_s: float = QUICK_S) -> None:
        self._quick_s = quick_s
        self._since: dict[Future[None], float] = {}

    def require_room(self, most: int) -> None:
        """Check that fewer than ``most`` requests wait, or that the storage has answered lately.

        Raises:
            Refusal: 503.
        """
        if len(self._since) >= most and time.monotonic() - next(iter(self._since.values())) >= self._quick_s:
            raise self._refusal()

    async def wait(self, stored: Future[None], *, most: int) -> None:
        """Wait until labels are stored; with ``most`` others only for a moment.

        Raises:
            Refusal: 503, they have not been stored by then, nor will be unless that has begun.
            StorageError: the storage fails.
        """
        seconds = self._quick_s if len(self._since) >= most else None
        self._since[stored] = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                await asyncio.wrap_future(stored)
        except TimeoutError:
            raise self._refusal() from None
        finally:
            del self._since[stored]

    def _refusal(self) -> Refusal:
        waiting = f"{len(self._since)} requests wait for the storage of labels; send them again"
        return Refusal(503, "storage_unavailable", waiting, retry_after_s=5.0)
