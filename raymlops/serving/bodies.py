"""Bodies that are taken from clients before a replica has their request, and how much of them a process holds.

Owns the account of bytes, the bound of each body and the time that it may take. A request asks for a place at a replica
only once its body is complete: one that never comes keeps no place from anybody.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from raymlops.serving.asgi import too_large_body
from raymlops.serving.reading import Refusal

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from raymlops.serving.asgi import Message, Receive

WAITING_BYTES = 256 * 1024 * 1024
SMALL_SHARE = 0.25
"""Share of them that is for small bodies alone, so that large ones leave room for what most requests are."""
SMALL_BODY_BYTES = 64_000


class Account:
    """The bytes of all bodies that a process holds, from their first to their request's end. For one event loop."""

    def __init__(self, most: int = WAITING_BYTES) -> None:
        self.most = most
        self.held = 0


class Body:
    """One body, which stands in an account until the block that it is used in ends."""

    def __init__(self, account: Account, declared: bytes) -> None:
        self._account = account
        self._declared = int(declared) if declared.isdigit() and len(declared) < 19 else None
        self._bytes = bytearray()
        self._size = 0
        self.small = self._declared is not None and self._declared <= SMALL_BODY_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._account.held -= self._size
        self._size = 0

    async def read(self, receive: Receive, *, limit: int, seconds: float) -> bytes | None:
        """Return the body once it is complete, None where the client left before.

        Raises:
            Refusal: 413, it has more bytes than ``limit``, or says so; 408, it took longer; 503, so many wait already.
        """
        if self._declared is not None and self._declared > limit:
            raise too_large_body(limit)
        try:
            async with asyncio.timeout(seconds):
                return await self._read(receive, limit)
        except TimeoutError:
            raise Refusal(408, "slow_body", f"the body was not complete within {seconds:g} s") from None

    async def _read(self, receive: Receive, limit: int) -> bytes | None:
        account = self._account
        # One body of the largest size always has room by itself.
        most = account.most if self.small else max(limit, int(account.most * (1 - SMALL_SHARE)))
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            chunk = message.get("body", b"")
            if self._size + len(chunk) > limit:
                raise too_large_body(limit)
            if account.held + len(chunk) > most:
                waiting = f"{account.held} bytes of bodies wait here already; try again"
                raise Refusal(503, "overloaded", waiting, retry_after_s=1.0)
            self._bytes += chunk
            self._size += len(chunk)
            account.held += len(chunk)
            if not message.get("more_body", False):
                whole, self._bytes = bytes(self._bytes), bytearray()
                return whole


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that has been read, and then whatever else comes."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again
