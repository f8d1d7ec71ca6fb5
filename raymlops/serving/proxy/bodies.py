"""Buffering of request bodies before a replica has the request, within a memory budget per process.

Owns the count of bytes, the bound of each body and of all bodies of one model, and their deadlines. A request takes a
slot of a replica only once its body is complete: a body that never arrives blocks none.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING

from raymlops.serving.asgi import Pieces, too_large_body
from raymlops.serving.json_scan import PIECE_BYTES
from raymlops.serving.proxy.bounds import INDEX
from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from raymlops.serving.asgi import Message, Receive
    from raymlops.serving.csv_scan import CsvScan
    from raymlops.serving.json_scan import JsonScan

WAITING_BYTES = 256 * 1024 * 1024
SMALL_SHARE = 0.25
"""Share reserved for small bodies, so that large ones leave room for most requests."""
OTHERS_SHARE = 0.25
"""Share that one model's bodies leave to other models: with the above, its large ones get a half."""
UNKNOWN_SHARE = 0.125
"""Share of all names without a model together, and of models that have not answered yet."""
PAUSE_S = 1.0
"""How long a body has to pause before another one may take its room."""
MOVING_BYTES = 16_384
"""How much of a body ends a pause: a byte now and then does not."""
SMALL_BODY_BYTES = 64_000
PACE_BYTES_PER_S = 16_000_000
"""How fast large bodies are read, all together, where there are several beside small ones: 8 MB take an event loop
about 20 ms, and a replica as long to refuse them. At 32 MB/s the 99th percentile of small ones behind the Python proxy
is half as high again."""
BESIDE_S = 1.0
"""How long after a small body others are taken to be beside it."""
LATE_S = 1.0
"""How late a deadline has to be noticed for this process, rather than the client, to have been away."""
CROWDED = Refusal(503, "overloaded", "the body waited for others for most of its time; try again", retry_after_s=1.0)


def _stays() -> bool:
    return False


class Account:
    """The bytes of all bodies that a process holds, until their requests end. For one event loop."""

    def __init__(
        self,
        most: int = WAITING_BYTES,
        *,
        pace_bytes_per_s: float = PACE_BYTES_PER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = most
        self.held = 0
        self.reading: set[Body] = set()
        self.large = 0
        """Large bodies that are read, or whose requests are in hand."""
        self._pace = pace_bytes_per_s
        self._clock = clock
        self._small_at = float("-inf")
        self._turn = asyncio.Lock()
        self._refused = asyncio.Lock()
        self._of: Counter[str | None] = Counter()

    def add(self, model: str | None, size: int) -> None:
        """Add to the bytes held for a model; a negative size releases them."""
        self.held += size
        self._of[model] += size
        if not self._of[model]:
            del self._of[model]

    def note_small(self) -> None:
        """Record that a small body was answered."""
        self._small_at = self._clock()

    @property
    def beside_small(self) -> bool:
        """Return whether small bodies are answered meanwhile."""
        return self._clock() - self._small_at < BESIDE_S

    async def pace(
        self, model: str | None, size: int, *, has_left: Callable[[], bool] = _stays, refused: bool = False
    ) -> None:
        """Wait before more is read of a large body of which a piece of this size has been; alone it never waits.

        Bodies take turns, a piece of one after a piece of each other; one whose client has left gives its turn away.
        All that are refused have one place together: they hold no memory, and nothing else bounds how many they are.
        The index sees no small bodies of the models that it forwards to, and takes them to be there.
        """
        if self.large > 1:
            async with self._refused if refused else nullcontext(), self._turn:
                if not has_left():
                    await asyncio.sleep(size / self._pace if model == INDEX or self.beside_small else 0)

    def make_room(self, body: Body, size: int, *, limit: int, now: float) -> bool:
        """Return whether more bytes of a body fit, where necessary in place of those that paused longest."""
        model = body.model
        if self.has_room(model, size, small=body.small, limit=limit):
            return True
        slow = [other for other in self.reading if other.moved_at <= now - PAUSE_S and other is not body]
        for other in sorted(slow, key=lambda other: other.moved_at):
            if other.model == model or self._of[model] + size <= self._own(model, small=body.small, limit=limit):
                other.give_up()
                if self.has_room(model, size, small=body.small, limit=limit):
                    return True
        return False

    def has_room(self, model: str | None, size: int, *, small: bool, limit: int) -> bool:
        """Return whether more bytes of a body fit; a body of the model's largest size always fits alone."""
        own, shared = self._own(model, small=small, limit=limit), max(limit, self._shared(small=small))
        return self.held + size <= shared and self._of[model] + size <= own

    def _own(self, model: str | None, *, small: bool, limit: int) -> float:
        own = self.most * UNKNOWN_SHARE if model is None else self._shared(small=small) - self.most * OTHERS_SHARE
        return max(limit, own)

    def _shared(self, *, small: bool) -> float:
        return self.most * (1.0 if small else 1.0 - SMALL_SHARE)


class Body:
    """One body, counted in an account until its ``with`` block ends."""

    def __init__(self, account: Account, declared: bytes, *, has_left: Callable[[], bool] = _stays) -> None:
        self.model: str | None = None
        self.moved_at = math.inf
        """When its current pause began, by the event loop's clock."""
        self.scan: JsonScan | CsvScan | None = None
        """What a large body is scanned by while it arrives."""
        self._account = account
        self._has_left = has_left
        self._refusal: Refusal | None = None
        self._waited = 0.0
        """Seconds for other bodies."""
        self._scanned = False
        self._receiving = False
        self._given_up = False
        self._moved = 0
        self._declared = int(declared) if declared.isdigit() and len(declared) < 19 else None
        self._pieces = Pieces()
        self.small = self._declared is not None and self._declared <= SMALL_BODY_BYTES

    def __enter__(self) -> Self:
        self._account.large += not self.small
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._account.large -= not self.small
        self._release()

    def may_exceed(self, limit: int) -> bool:
        """Return whether the body may exceed a limit, by its declared length."""
        return self._declared is None or self._declared > limit

    def give_up(self) -> None:
        """Release what there is of it for another one, and let ``read`` refuse the rest."""
        self._given_up = True
        self._release()
        if not self._until.expired():
            self._until.reschedule(self._now())

    async def read(
        self, receive: Receive, *, model: str | None, limit: int, seconds: float, pause_s: float
    ) -> list[bytes] | None:
        """Return the pieces of the complete body, None if the client disconnects before.

        It may take ``seconds`` in all, and ``pause_s`` between two chunks, in which no wait for other bodies counts.
        ``model`` is its model: None stands for all unknown names together.

        Raises:
            Refusal: 413, it has or declares more bytes than ``limit``, or has more values than it may; 400, it is
                nested too deeply; 408, it is too slow; 503, the buffer is full, or the wait for other bodies took most
                of its time.
        """
        self.model = model
        if self._declared is not None and self._declared > limit:
            raise too_large_body(limit)
        self._now = asyncio.get_running_loop().time
        self._pause_s, self._end = pause_s, self._now() + seconds
        try:
            try:
                return await self._read_in_time(receive, limit)
            except TimeoutError:
                late_s = self._now() - (self._until.when() or math.inf)
                if self._given_up or not self._receiving or late_s < LATE_S:
                    raise
                self._end += late_s  # this process was stopped, or its loop held up: what came meanwhile is there
                return await self._read_in_time(receive, limit)
        except TimeoutError:
            if self._refusal is not None:
                raise self._refusal from None
            if not self._given_up and self._now() >= self._end and self._waited > seconds / 2:
                raise CROWDED from None
            slow = f"the body was not complete within {seconds:g} s, or paused for {pause_s:g} s"
            if self._given_up:
                slow = "the body paused while others waited for its room"
            raise Refusal(408, "slow_body", slow) from None
        finally:
            self._account.reading.discard(self)

    async def _read_in_time(self, receive: Receive, limit: int) -> list[bytes] | None:
        async with asyncio.timeout_at(min(self._end, self._now() + self._pause_s)) as self._until:
            return await self._read(receive, limit)

    async def _read(self, receive: Receive, limit: int) -> list[bytes] | None:
        account = self._account
        self.moved_at = self._now()
        while True:
            self._receiving = True
            message = await receive()
            self._receiving = False
            if self._given_up:
                raise TimeoutError
            if message["type"] != "http.request":
                return None
            chunk = message.get("body", b"")
            if self._pieces.size + len(chunk) > limit:
                raise too_large_body(limit)
            if not account.make_room(self, len(chunk), limit=limit, now=self._now()):
                waiting = f"{account.held} bytes of request bodies are buffered already; try again"
                raise Refusal(503, "overloaded", waiting, retry_after_s=1.0)
            self._pieces.add(chunk)
            account.add(self.model, len(chunk))
            if self.scan is not None:
                try:
                    await self._look(self.scan, chunk)
                except Refusal as refusal:
                    self._refusal = refusal
                    left = limit - self._pieces.size
                    self._release()
                    await self._discard(receive, message, left)
                    raise
            if not message.get("more_body", False):
                self._note_size()
                return self._pieces.taken()
            account.reading.add(self)
            self._progress(len(chunk))
            if not self.small and not self._scanned:
                await self._pace(len(chunk))

    def _progress(self, size: int) -> None:
        """Take what came for the end of a pause."""
        if not size:
            return
        self._until.reschedule(min(self._end, self._now() + self._pause_s))
        self._moved += size
        if self._moved >= MOVING_BYTES:
            self._moved, self.moved_at = 0, self._now()

    async def _pace(self, size: int) -> None:
        """Wait for other bodies, which is no pause of this one's client."""
        if self._account.large < 2:
            return
        start, until, moved_at = self._now(), self._until.when() or self._end, self.moved_at
        self._until.reschedule(self._end)
        self.moved_at = math.inf
        try:
            refused = self._refusal is not None
            await self._account.pace(self.model, size, has_left=self._has_left, refused=refused)
        finally:
            waited = self._now() - start
            self._waited += waited
        self._until.reschedule(min(self._end, until + waited))
        self.moved_at = moved_at + waited

    async def _look(self, scan: JsonScan | CsvScan, chunk: bytes) -> None:
        """Scan what came of a body once it looks too large, at the pace at which bodies are read."""
        if not self._scanned and not scan.looks_large(chunk):
            return
        for one in (chunk,) if self._scanned else self._pieces:
            for start in range(0, len(one), PIECE_BYTES):
                piece = one[start : start + PIECE_BYTES]
                scan.add(piece)
                await self._pace(len(piece))
        self._scanned = True

    def _release(self) -> None:
        self._account.reading.discard(self)
        self._account.add(self.model, -self._pieces.size)
        self._pieces = Pieces()

    async def _discard(self, receive: Receive, message: Message, left: int) -> None:
        """Read the rest of a refused body as fast as others: who is answered at once sends the next one at once."""
        while left >= 0 and message["type"] == "http.request" and message.get("more_body", False):
            await self._pace(len(message.get("body", b"")))
            message = await receive()
            if size := len(message.get("body", b"")):
                left -= size
                self._progress(size)

    def _note_size(self) -> None:
        """Count a body of undeclared length as small if it turned out to be."""
        if not self.small and self._pieces.size <= SMALL_BODY_BYTES:
            self.small = True
            self._account.large -= 1


def replayed(pieces: list[bytes], receive: Receive) -> Receive:
    """Return a ``receive`` that first returns a body that has been read, and removes its pieces from the list."""
    pieces.reverse()

    async def again() -> Message:
        if not pieces:
            return await receive()
        return {"type": "http.request", "body": pieces.pop(), "more_body": bool(pieces)}

    return again
