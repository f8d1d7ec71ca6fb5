"""Request handling, the same for all protocols: authentication, traffic split, prediction, recording.

Owns the order: authenticate, decode the body, choose a version, predict, encode, record, copy to shadows. Which version
that is, ``routing`` says. Knows nothing of HTTP or gRPC servers (see ``http_front`` and ``grpc_front``) and nothing of
Ray: other versions are reached through ``Peers``.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from raymlops.errors import InvalidRowsError, NonFiniteError
from raymlops.images import count_images
from raymlops.serving.auth import Guard, secret_of
from raymlops.serving.protocols import oip
from raymlops.serving.protocols.base import Responder
from raymlops.serving.refusal import Refusal
from raymlops.serving.replica.answered import Answered
from raymlops.serving.replica.batcher import Batcher
from raymlops.serving.replica.parse_pool import ParsePool
from raymlops.serving.replica.routing import Routing, ask_canary
from raymlops.serving.replica.shadows import Shadows
from raymlops.serving.replica.turns import Turns
from raymlops.serving.request import Exchange, headers_of, request_id_of
from raymlops.serving.settings import Settings
from raymlops.serving.traffic import copies

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from raymlops.arrays import Columns
    from raymlops.predictions.served import RequestRecord, Route
    from raymlops.serving.auth import Caller
    from raymlops.serving.protocols.base import Encoded, Parsed
    from raymlops.serving.protocols.base import Protocol as Form
    from raymlops.serving.replica.routing import Peers
    from raymlops.signature import Signature

T = TypeVar("T")

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log

LARGE_BODY_BYTES = 64_000
"""Bodies above this are parsed in a thread, and their answers encoded there: a malicious one takes 5 ms, in which all
other requests would wait. Such a request needs a turn.

Those with images always are: a kilobyte may take as long.
"""
MANY_IMAGES = 16
"""A body with more images is as large, however small their files are: to open and decode each takes .1 ms or more."""

MAX_HELD_BYTES = 512 * 1024 * 1024
"""Arrays of all large requests that are parsed and not answered. Pixels may be thousands of times as large as their
files, so that bounds on bodies are none on them. One request alone has bounds of its own."""


class Model(Protocol):
    """The interface of a loaded bundle."""

    @property
    def signature(self) -> Signature:
        """Return the columns of inputs and outputs."""

    @property
    def example(self) -> list[dict[str, Any]]:
        """Return rows that the model accepts."""

    def compute(self, columns: Columns) -> Columns:
        """Return output columns for input columns, which may be of several requests, finite or not."""

    def require_finite(self, outputs: Columns, first_row: int = 0) -> None:
        """Raise where outputs of one request, or of several, are not finite; names rows from ``first_row`` on."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The version of a replica."""

    name: str
    version: int
    digest: str
    run_id: str


@dataclass
class RequestHandler:
    """Handle the requests of one model version. Use from one event loop."""

    model: Model
    identity: Identity
    peers: Peers
    settings: Settings = field(default_factory=Settings)
    record: Callable[[RequestRecord], None] = lambda _served: None
    draw: Callable[[], float] = random.random
    parsing: ParsePool = field(default_factory=ParsePool)
    turns: Turns = field(default_factory=Turns)

    def __post_init__(self) -> None:
        self.answered = Answered()
        self._has_images = self.model.signature.has_images
        self.held_bytes = 0
        self.batcher = self._batcher()
        self.turns.most = self._most_waiting()
        self.guard = Guard(self.settings.access)
        self.routing = Routing(self.identity.version, self.settings.traffic, self.draw)
        self.shadows = Shadows(
            lambda version, columns, *, rows: self.peers.ask(version, columns, rows=rows),
            record=lambda served: self.record(served),  # noqa: PLW0108 - looked up when it is called
            refusal=self.refusal,
        )

    def configure(self, settings: Settings) -> None:
        """Apply new settings; requests in flight keep theirs."""
        self.settings = settings
        self.batcher.max_rows = settings.limits.max_batch_rows
        self.batcher.max_elements = settings.limits.max_batch_elements
        self.turns.most = self._most_waiting()
        self.guard.configure(settings.access)
        self.routing.traffic = settings.traffic

    def use(self, model: Model) -> None:
        """Replace the model by another form of it, such as a compiled one; before the first request only."""
        self.model = model
        self._has_images = model.signature.has_images
        self.batcher.close()
        self.batcher = self._batcher()

    def begin(self, given: Iterable[tuple[bytes, bytes]]) -> Exchange:
        """Return the state of a new request with these headers."""
        traffic = self.settings.traffic
        headers = headers_of(given, *([traffic.sticky_header.encode()] if traffic.sticky == "header" else []))
        request_id = request_id_of(headers.get(b"x-request-id"))
        return Exchange(headers, request_id=request_id, version=self.identity.version)

    async def handle(
        self, exchange: Exchange, work: Coroutine[Any, Any, tuple[int, T]], *, left_s: float
    ) -> tuple[int, T] | Refusal:
        """Return the status and answer of one request, or its refusal; ``left_s`` is what is left of its deadline.

        Whatever the outcome, it is recorded, also for a client that disconnects.
        """
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                status, answer = await work
        except asyncio.CancelledError:
            self._finish(exchange, 499, "disconnected")
            raise
        except Exception as error:
            refusal = self.refusal(error, exchange.request_id)
            self._finish(exchange, refusal.status, refusal.code)
            return refusal
        self._finish(exchange, status, "")
        return status, answer

    async def predict(self, exchange: Exchange, form: Form, body: bytes, *, caller: Caller) -> Encoded:
        """Return the encoded answer to one request that has its turn, of a caller that ``admit`` has accepted.

        Raises:
            Exception: what ``refusal`` turns into an answer.
        """
        signature, max_rows = self.model.signature, self.settings.limits.max_rows
        exchange.body_bytes = len(body)
        version, route = self.routing.choose(exchange, caller)
        if version == self.identity.version:
            self._require_room()
        in_thread = self._has_images or len(body) > LARGE_BODY_BYTES
        if in_thread:
            parsed = await self.parsing.hold(exchange.leave_turn, self._parse_large, form, body, exchange.headers)
            exchange.held_bytes = self._hold(parsed.columns)
        else:
            parsed = form.parse(body, exchange.headers, signature=signature, max_rows=max_rows)
        if parsed.request_id is not None and b"x-request-id" not in exchange.headers:
            exchange.request_id = parsed.request_id
        if parsed.version:
            exchange.named = parsed.version
            version, route = self.routing.choose(exchange, caller)
        exchange.rows, exchange.columns = parsed.rows, parsed.columns
        outputs = await self._predict_routed(exchange, parsed, version=version, route=route)
        exchange.outputs = outputs
        responder = Responder(self.identity.name, str(exchange.version), exchange.request_id)
        if in_thread:
            return await self.parsing.finish(form.encode, outputs, parsed, responder, signature=signature)
        return form.encode(outputs, parsed, responder, signature=signature)

    def is_large(self, body: bytes) -> bool:
        """Return whether a request needs a turn before its body is parsed."""
        return len(body) > LARGE_BODY_BYTES or (self._has_images and count_images(body) > MANY_IMAGES)

    async def take_turn(self, exchange: Exchange, *, large: bool) -> None:
        """Wait until a request may be parsed; its turn ends soon after its rows are queued for the model, or with it.

        A thread that parses on after the deadline keeps the turn until it is free.

        Raises:
            Refusal: 503, too many large ones wait.
        """
        if not large:
            self.turns.note_small()
        elif (turn := await self.turns.take()) is not None:
            exchange.end_turn, exchange.queue_turn = turn.end, turn.queue

    async def metadata(self, version: int, headers: Mapping[bytes, bytes]) -> dict[str, Any]:
        """Return a live version's metadata, whose columns may differ from this one's, and the list of live versions.

        Raises:
            Exception: the version is another one, and did not answer.
        """
        up = [str(other) for other in self.routing.up]
        if version == self.identity.version:
            return oip.metadata(self.model.signature, self.identity.name, up)
        return {**await self.peers.metadata(version, headers), "versions": up}

    async def answer(self, columns: Columns, *, rows: int) -> tuple[Columns, float]:
        """Return this version's outputs and the seconds that they took, for the front of another version."""
        start = time.perf_counter()
        held = self._hold(columns)
        try:
            outputs = await self._predict_local(columns, rows=rows)
        finally:
            self.held_bytes -= held
        return outputs, time.perf_counter() - start

    def admit(self, exchange: Exchange, *, scope: Any = "predict") -> Caller:
        """Authenticate the caller before the body is parsed; the request counts against the key's rate limit.

        Raises:
            Refusal: 401, 403 or 429.
        """
        caller = self.guard.admit(secret_of(exchange.headers), scope=scope)
        exchange.key_id, exchange.caller, exchange.labels_of = caller.key_id, caller.name, caller.labels_of
        return caller

    def expect(self, exchange: Exchange, caller: Caller) -> None:
        """Check an admitted request as far as possible before its body is read.

        Raises:
            Refusal: its pin is refused, or 503 where this version would have to answer and its queue is full.
        """
        pin = self.routing.pinned(exchange, caller)
        if pin == self.identity.version or (pin is None and not self.settings.traffic.canaries):
            self._require_room()

    def _finish(self, exchange: Exchange, status: int, code: str) -> None:
        """Record a request, and send copies of an answered one to the shadows. Never raises."""
        exchange.end_turn()
        self.held_bytes -= exchange.held_bytes
        if not exchange.protocol:  # pages and health checks are no predictions
            return
        try:
            if status != 200:
                exchange.outputs = None  # nobody was given what the model computed
            elif exchange.outputs is not None:
                self.answered.add(exchange)
            self.record(exchange.served(status, code))
            traffic = self.settings.traffic
            if traffic.shadows and exchange.outputs is not None:
                most, timeout_s = traffic.max_shadow_requests, self.settings.limits.timeout_s
                for version in copies(traffic, draw=self.draw()):
                    self.shadows.send(version, exchange, max_in_flight=most, timeout_s=timeout_s)
        except Exception:  # the caller gets the answer all the same
            logger.exception("request %s could not be recorded", exchange.request_id)

    def refusal(self, error: Exception, request_id: str) -> Refusal:
        """Return the refusal for an exception."""
        match error:
            case Refusal():
                return error
            case TimeoutError():
                late = f"no answer within {self.settings.limits.timeout_s:g} s"
                return Refusal(504, "timeout", late, retry_after_s=1.0)
            case InvalidRowsError():
                return Refusal(422, "invalid_rows", str(error), problems=error.problems)
            case NonFiniteError():
                # The model answered its own example before it was ready: the cause is extreme values in these rows.
                return Refusal(422, "not_finite", f"no finite answer to these rows: {error.message}")
        logger.error("request %s: the model raised", request_id, exc_info=error)
        return Refusal(500, "model_error", f"the model raised {type(error).__name__}; the replica's log has it")

    def close(self) -> None:
        """Stop the threads."""
        self.batcher.close()
        self.parsing.close()

    def _most_waiting(self) -> int:
        """Return how many large requests may wait for their turns: half of the replica's slots are left to others."""
        return max(1, self.settings.limits.max_ongoing_requests // 2)

    def _batcher(self) -> Batcher:
        limits = self.settings.limits
        return Batcher(
            self.model.compute,
            check=self.model.require_finite,
            max_rows=limits.max_batch_rows,
            max_elements=limits.max_batch_elements,
            varying=[column for column in self.model.signature.inputs if column.varies],
        )

    def _parse_large(self, form: Form, body: bytes, headers: Mapping[bytes, bytes]) -> Parsed:
        """Parse a body, in a thread, whose arrays may be far larger, unless there is no room for any."""
        self._require_bytes()
        return form.parse(body, headers, signature=self.model.signature, max_rows=self.settings.limits.max_rows)

    def _hold(self, columns: Columns) -> int:
        """Count the bytes of a request's arrays as held, and return them; the caller subtracts them with its answer.

        Raises:
            Refusal: 503, there is no room for so many.
        """
        ragged = {column.name for column in self.model.signature.inputs if None in column.shape}
        size = sum(
            sum(getattr(item, "nbytes", 0) for item in array) if name in ragged else array.nbytes
            for name, array in columns.items()
        )
        self._require_bytes(size)
        self.held_bytes += size
        return size

    def _require_bytes(self, size: int = 0) -> None:
        """Check that requests may hold so many more bytes; without a number, any.

        Raises:
            Refusal: 503, others hold too many.
        """
        memory, held = self.settings.memory_bytes, self.held_bytes
        most = MAX_HELD_BYTES if memory is None else min(MAX_HELD_BYTES, memory // 4)
        if held >= most or (held and held + size > most):
            waits = f"requests of {held / 2**20:.1f} MiB, when decoded, wait for their answers already; try again"
            raise Refusal(503, "overloaded", waits, retry_after_s=1.0)

    async def _predict_routed(self, exchange: Exchange, parsed: Parsed, *, version: int, route: Route) -> Columns:
        exchange.queue_turn()  # a small request runs between the pieces of a large one
        if route == "pinned" and version != self.identity.version:
            exchange.version = version
            outputs, exchange.model_seconds = await self.peers.ask(version, parsed.columns, rows=parsed.rows)
            return outputs
        if route == "canary":
            # Half of the request's deadline is left for the champion, however long the canary may take.
            limit_s = min(self.settings.traffic.canary_timeout_s, self.settings.limits.timeout_s / 2)
            answered = await ask_canary(self.peers, exchange, parsed, version=version, limit_s=limit_s)
            if answered is not None:
                return answered
        start = time.perf_counter()
        outputs = await self._predict_local(parsed.columns, rows=parsed.rows)
        exchange.model_seconds = time.perf_counter() - start
        return outputs

    async def _predict_local(self, columns: Columns, *, rows: int) -> Columns:
        self._require_room(rows)
        return await self.batcher.submit(columns, rows=rows)

    def _require_room(self, rows: int = 0) -> None:
        """Check that the queue has room for so many more rows; without a number, for any.

        Also called before a body is read and before it is parsed: either costs more than the model does, and an
        overloaded replica that refused afterwards would do nothing else.

        Raises:
            Refusal: 503, the queue is full.
        """
        waiting, most = self.batcher.waiting_rows, self.settings.limits.max_waiting_rows
        if waiting >= most or (waiting and waiting + rows > most):
            raise Refusal(503, "overloaded", f"{waiting} rows are queued already; try again", retry_after_s=1.0)
