"""Answering a request of any protocol: who may ask, which version answers, and what is kept of it.

Owns the order: guard, body to columns, traffic, model, columns to body, record, copies to shadows. Knows nothing of
HTTP or gRPC servers (see ``front`` and ``grpcfront``) and nothing of Ray: other versions are reached through ``Peers``.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from raymlops.errors import InvalidRowsError, NonFiniteError
from raymlops.serving.auth import Guard, secret_of
from raymlops.serving.protocols import oip
from raymlops.serving.protocols.base import Answering
from raymlops.serving.refusal import Refusal
from raymlops.serving.replica.batcher import Batcher
from raymlops.serving.replica.parse_pool import Parsing
from raymlops.serving.request import PIN_HEADER
from raymlops.serving.settings import Settings
from raymlops.serving.traffic import choose, copies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from raymlops.arrays import Columns
    from raymlops.predictions.served import Route, Served
    from raymlops.serving.auth import Caller
    from raymlops.serving.protocols.base import Asked, Encoded
    from raymlops.serving.protocols.base import Protocol as Form
    from raymlops.serving.request import Exchange
    from raymlops.signature import Signature

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log

LARGE_BODY_BYTES = 64_000
"""Bodies above this are parsed in a thread: one that is made to be slow takes 5 ms, in which others would wait."""


class Model(Protocol):
    """What is asked of a loaded bundle."""

    @property
    def signature(self) -> Signature:
        """Return what the model takes and gives."""

    @property
    def example(self) -> list[dict[str, Any]]:
        """Return rows that the model takes."""

    def predict(self, columns: Columns) -> Mapping[str, Any]:
        """Return output columns for input columns."""


class Peers(Protocol):
    """The other versions of the same model that are up."""

    async def ask(self, version: int, columns: Columns, *, rows: int) -> tuple[Columns, float]:
        """Return another version's output columns, and the seconds that its model took.

        Raises:
            Exception: whatever that version raised, or that it cannot be reached.
        """

    async def metadata(self, version: int, headers: Mapping[bytes, bytes]) -> dict[str, Any]:
        """Return another version's metadata in the Open Inference Protocol, to the caller with these headers.

        Raises:
            Exception: as ``ask``.
        """


class NoPeers:
    """A version that stands alone."""

    async def ask(self, version: int, columns: Columns, *, rows: int) -> tuple[Columns, float]:  # noqa: ARG002
        """Refuse: there is nobody."""
        raise _unreachable(version)

    async def metadata(self, version: int, headers: Mapping[bytes, bytes]) -> dict[str, Any]:  # noqa: ARG002
        """Refuse: there is nobody."""
        raise _unreachable(version)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which version answers."""

    name: str
    version: int
    digest: str
    run_id: str


@dataclass(slots=True)
class ShadowCounts:
    """Copies to one shadow: how many are on their way, and how many were not sent."""

    in_flight: int = 0
    dropped: int = 0


@dataclass
class Core:
    """Answer the requests of one model version. Use from one event loop."""

    model: Model
    identity: Identity
    settings: Settings = field(default_factory=Settings)
    peers: Peers = field(default_factory=NoPeers)
    record: Callable[[Served], None] = lambda _served: None
    draw: Callable[[], float] = random.random
    parsing: Parsing = field(default_factory=Parsing)

    def __post_init__(self) -> None:
        limits = self.settings.limits
        self.batcher = Batcher(self.model.predict, max_rows=limits.max_batch_rows)
        self.guard = Guard(self.settings.access)
        self.shadows: dict[int, ShadowCounts] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def up(self) -> list[int]:
        """Return the versions that can be asked: this one, and those that stand beside it."""
        return sorted({self.identity.version, *self.settings.traffic.standing})

    def configure(self, settings: Settings) -> None:
        """Change the settings; requests in flight keep theirs."""
        self.settings = settings
        self.batcher.max_rows = settings.limits.max_batch_rows
        self.guard.configure(settings.access)

    def use(self, model: Model) -> None:
        """Answer with another form of the same model, such as a compiled one; before the first request only."""
        self.model = model
        self.batcher.close()
        self.batcher = Batcher(model.predict, max_rows=self.settings.limits.max_batch_rows)

    async def predict(self, exchange: Exchange, form: Form, body: bytes, *, caller: Caller) -> Encoded:
        """Return the answer to one request of a caller that ``admit`` has let in.

        Raises:
            Exception: what ``refusal`` turns into an answer.
        """
        signature, max_rows = self.model.signature, self.settings.limits.max_rows
        exchange.body_bytes = len(body)
        version, route = self._chosen(exchange, caller)
        if version == self.identity.version:
            self._require_room()
        if len(body) > LARGE_BODY_BYTES:
            asked = await self.parsing.run(form.parse, body, exchange.headers, signature=signature, max_rows=max_rows)
        else:
            asked = form.parse(body, exchange.headers, signature=signature, max_rows=max_rows)
        if asked.request_id is not None and b"x-request-id" not in exchange.headers:
            exchange.request_id = asked.request_id
        if asked.version:
            exchange.named = asked.version
            version, route = self._chosen(exchange, caller)
        exchange.rows, exchange.columns = asked.rows, asked.columns
        outputs = await self._ask(exchange, asked, version=version, route=route)
        exchange.outputs = outputs
        answering = Answering(self.identity.name, str(exchange.version), exchange.request_id)
        return form.encode(outputs, asked, answering, signature=signature)

    async def metadata(self, version: int, headers: Mapping[bytes, bytes]) -> dict[str, Any]:
        """Return what a version that is up takes and gives, which may differ from this one's, and which others are up.

        Raises:
            Exception: it is another one, and gave no answer.
        """
        up = [str(other) for other in self.up]
        if version == self.identity.version:
            return oip.metadata(self.model.signature, self.identity.name, up)
        return {**await self.peers.metadata(version, headers), "versions": up}

    async def answer(self, columns: Columns, *, rows: int) -> tuple[Columns, float]:
        """Return the outputs of this version, and the seconds that they took, to the front of another one."""
        start = time.perf_counter()
        outputs = await self._own(columns, rows=rows)
        return outputs, time.perf_counter() - start

    def admit(self, exchange: Exchange, *, scope: Any = "predict") -> Caller:
        """Return who asks, before anything of a body is parsed; the request counts against their rate.

        Raises:
            Refusal: 401, 403 or 429.
        """
        caller = self.guard.admit(secret_of(exchange.headers), scope=scope)
        exchange.key_id = caller.key_id
        return caller

    def expect(self, exchange: Exchange, caller: Caller) -> None:
        """Check what can be known of a request that was let in before its body is read.

        Raises:
            Refusal: of its pin, or 503 where this version would have to answer and no row has room.
        """
        pin = self.pinned(exchange, caller)
        if pin == self.identity.version or (pin is None and not self.settings.traffic.canaries):
            self._require_room()

    def finish(self, exchange: Exchange, status: int, code: str) -> None:
        """Keep what became of a request, and send copies of an answered one to the shadows. Never raises."""
        try:
            self.record(exchange.served(status, code))
            traffic = self.settings.traffic
            if traffic.shadows and exchange.outputs is not None:
                for version in copies(traffic, draw=self.draw()):
                    self._copy(version, exchange)
        except Exception:  # the caller's answer is there, whatever becomes of the record
            logger.exception("request %s could not be recorded", exchange.request_id)

    def refusal(self, error: Exception, request_id: str) -> Refusal:
        """Return the answer to a request on which something was raised."""
        match error:
            case Refusal():
                return error
            case TimeoutError():
                late = f"no answer within {self.settings.limits.timeout_s:g} s"
                return Refusal(504, "timeout", late, retry_after_s=1.0)
            case InvalidRowsError():
                return Refusal(422, "invalid_rows", str(error), problems=error.problems)
            case NonFiniteError():
                # The model answered its own example before it was ready: values this far out are what it was asked.
                return Refusal(422, "not_finite", f"no finite answer to these rows: {error.message}")
        logger.error("request %s: the model raised", request_id, exc_info=error)
        return Refusal(500, "model_error", f"the model raised {type(error).__name__}; the replica's log has it")

    def close(self) -> None:
        """Let the threads end."""
        self.batcher.close()
        self.parsing.close()

    def _chosen(self, exchange: Exchange, caller: Caller) -> tuple[int, Route]:
        """Return who is to answer, and why.

        Whoever names a version has chosen it, this one too: chance did not, so that no share holds the request.

        Raises:
            Refusal: as ``pinned``.
        """
        traffic = self.settings.traffic
        exchange.epoch = traffic.epoch
        pin = self.pinned(exchange, caller)
        if pin is not None:
            exchange.route = "pinned"
            return pin, "pinned"
        if traffic.canaries:
            choice = choose(traffic, sticky=self._sticky(exchange), draw=self.draw())
            if choice.version is not None:
                return choice.version, "canary"
        return self.identity.version, "champion"

    async def _ask(self, exchange: Exchange, asked: Asked, *, version: int, route: Route) -> Columns:
        if route == "pinned" and version != self.identity.version:
            exchange.version = version
            outputs, exchange.model_seconds = await self.peers.ask(version, asked.columns, rows=asked.rows)
            return outputs
        if route == "canary":
            answered = await self._ask_canary(exchange, asked, version)
            if answered is not None:
                return answered
        start = time.perf_counter()
        outputs = await self._own(asked.columns, rows=asked.rows)
        exchange.model_seconds = time.perf_counter() - start
        return outputs

    async def _ask_canary(self, exchange: Exchange, asked: Asked, version: int) -> Columns | None:
        """Return a canary's answer; None where the champion has to stand in, which is counted against the canary.

        Raises:
            InvalidRowsError: the canary's recipe refuses the rows, which is an answer.
        """
        # Half of the request's own deadline is left for the champion, however long a canary may take.
        limit_s = min(self.settings.traffic.canary_timeout_s, self.settings.limits.timeout_s / 2)
        try:
            async with asyncio.timeout(limit_s):
                outputs, exchange.model_seconds = await self.peers.ask(version, asked.columns, rows=asked.rows)
        except asyncio.CancelledError:
            # The client left, or the request's own time is over, while the canary was asked: it was too late for them.
            exchange.fallback_from, exchange.fallback_code = version, "late"
            raise
        except InvalidRowsError:
            exchange.version, exchange.route = version, "canary"
            raise
        except Exception as error:
            logger.warning("request %s: canary %d: %r", exchange.request_id, version, error)
            exchange.fallback_from, exchange.fallback_code = version, _code_of(error)
            return None
        exchange.version, exchange.route = version, "canary"
        return outputs

    async def _own(self, columns: Columns, *, rows: int) -> Columns:
        self._require_room(rows)
        return await self.batcher.submit(columns, rows=rows)

    def _require_room(self, rows: int = 0) -> None:
        """Check that so many rows more may wait for the model; without a number, whether any may.

        Also asked before a body is read and before it is parsed: either costs more than the model does, and a replica
        that refused afterwards would do nothing else.

        Raises:
            Refusal: 503 where there is no room.
        """
        waiting, most = self.batcher.waiting_rows, self.settings.limits.max_waiting_rows
        if waiting >= most or (waiting and waiting + rows > most):
            raise Refusal(503, "overloaded", f"{waiting} rows are waiting already; try again", retry_after_s=1.0)

    def pinned(self, exchange: Exchange, caller: Caller) -> int | None:
        """Return the version that the caller named; to name the champion in the protocol's own place needs no right.

        Raises:
            Refusal: 403 without the right to choose, 400 for two choices, 404 where that version is not up.
        """
        header = exchange.headers.get(PIN_HEADER)
        text = exchange.named if header is None else header.decode("latin-1").strip(" \t")
        if text is None:
            return None
        if header is not None or text != str(self.identity.version):
            caller.require("pin")
        if header is not None and "," in text:
            wanted = [item.strip(" \t") for item in text.split(",")]
            if len(set(wanted)) > 1:
                message = f"the header {PIN_HEADER.decode()} asks for several versions: {text[:80]!r}; give one"
                raise Refusal(400, "several_versions", message)
            text = wanted[0]
        return self.version_of(text)

    def version_of(self, text: str) -> int:
        """Return the number of a version that is up.

        Raises:
            Refusal: 404, it is not, or this is no number.
        """
        up = self.up
        version = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
        if version is None or version not in up:
            known = ", ".join(map(str, up))
            raise Refusal(404, "unknown_version", f"version {text[:40]!r} is not up; those that are: {known}")
        return version

    def _sticky(self, exchange: Exchange) -> str | None:
        traffic = self.settings.traffic
        if traffic.sticky == "key":
            return exchange.key_id
        if traffic.sticky == "header":
            value = exchange.headers.get(traffic.sticky_header.encode())
            return None if value is None else value.decode("latin-1")
        return None

    def _copy(self, version: int, exchange: Exchange) -> None:
        counts = self.shadows.setdefault(version, ShadowCounts())
        if counts.in_flight >= self.settings.traffic.max_shadow_requests:
            counts.dropped += 1
            return
        counts.in_flight += 1
        task = asyncio.get_running_loop().create_task(self._shadow(version, exchange, counts))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shadow(self, version: int, exchange: Exchange, counts: ShadowCounts) -> None:
        assert exchange.columns is not None
        assert exchange.outputs is not None
        start = time.perf_counter()
        outputs: Columns | None = None
        status, code, seconds, difference = 200, "", 0.0, None
        try:
            async with asyncio.timeout(self.settings.limits.timeout_s):
                outputs, seconds = await self.peers.ask(version, exchange.columns, rows=exchange.rows)
            difference = largest_difference(exchange.outputs, outputs)
        except Exception as error:
            refusal = self.refusal(error, exchange.request_id)
            status, code = refusal.status, refusal.code
        finally:
            counts.in_flight -= 1
        self.record(
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


def join_pins(headers: dict[bytes, bytes], given: Iterable[tuple[bytes, bytes]]) -> None:
    """Make one header of several that name a version, as a proxy may do it too: then none is passed over."""
    if PIN_HEADER in headers:
        headers[PIN_HEADER] = b", ".join([value for name, value in given if name == PIN_HEADER])


def _code_of(error: Exception) -> str:
    """Return why a canary gave no answer; one whose model gives up by itself is late, as such a champion's is a 504."""
    if isinstance(error, Refusal):
        return error.code
    return "late" if isinstance(error, TimeoutError) else "error"


def _unreachable(version: int) -> Refusal:
    return Refusal(503, "version_unavailable", f"version {version} cannot be reached from here", retry_after_s=1.0)


def largest_difference(one: Columns, other: Columns) -> float:
    """Return the largest absolute difference of two answers' numbers; infinite where they differ in anything else."""
    if one.keys() != other.keys():
        return float("inf")
    largest = 0.0
    for name, array in one.items():
        second = other[name]
        if array.shape != second.shape or object in (array.dtype, second.dtype):
            if not _same(array, second):
                return float("inf")
        elif array.size:
            gap = np.abs(array.astype(np.float64) - second.astype(np.float64))
            missing = np.isnan(array) != np.isnan(second) if array.dtype.kind == "f" else np.zeros(1, dtype=bool)
            largest = float("inf") if missing.any() else max(largest, float(np.nan_to_num(gap).max()))
    return largest


def _same(one: Any, other: Any) -> bool:
    return one.shape == other.shape and all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(one, other, strict=True)
    )
