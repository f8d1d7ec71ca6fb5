"""The state of one request while it is handled, and the record of it.

Owns the names of the headers that an answer depends on, and the id of a request. Knows nothing of HTTP servers, gRPC or
models.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raymlops.predictions.served import RequestRecord
from raymlops.storage import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from raymlops.arrays import Columns
    from raymlops.predictions.served import Route

PIN_HEADER = b"x-raymlops-version"
FORWARDED_FOR = b"x-forwarded-for"
"""Addresses, of which the last is the client's as the endpoint's own proxy saw it; those before it are claims."""
HEADERS = frozenset(
    {
        *(b"accept", b"authorization", b"x-api-key", b"x-request-id", PIN_HEADER, b"traceparent"),
        *(b"content-length", b"content-encoding", b"content-type", b"inference-header-content-length"),
        *(b"host", b"origin", b"sec-fetch-site", FORWARDED_FOR),
    }
)


_CLIENT_BYTES = 200


@dataclass(slots=True)
class Exchange:
    """One request, filled in step by step while it is handled."""

    headers: Mapping[bytes, bytes]
    request_id: str
    version: int
    route: Route = "champion"
    protocol: str = ""
    ts: float = field(default_factory=clock.now_s)
    start: float = field(default_factory=time.perf_counter)
    rows: int = 0
    body_bytes: int = 0
    held_bytes: int = 0
    """Of the arrays of a large request, which wait for the model."""
    model_seconds: float = 0.0
    key_id: str | None = None
    caller: str | None = None
    """The name of the key."""
    labels_of: str | None = None
    """Whose requests the caller may label; None for everybody's."""
    named: str | None = None
    """The version that path or message name, where the protocol has a field for it."""
    fallback_from: int | None = None
    fallback_code: str | None = None
    epoch: str = ""
    columns: Columns | None = None
    outputs: Columns | None = None
    end_turn: Callable[[], None] = lambda: None
    """Ends the turn of a large request, where it has one."""
    queue_turn: Callable[[], None] = lambda: None
    """Records that the model has its rows, which ends the turn or lets it last a little longer."""

    def leave_turn(self) -> Callable[[], None]:
        """Return what ends the turn, which does not end with the request any more."""
        end, self.end_turn = self.end_turn, _nothing
        return end

    def served(self, status: int, code: str) -> RequestRecord:
        """Return the record of the finished request."""
        trace = self.headers.get(b"traceparent")
        return RequestRecord(
            request_id=self.request_id,
            ts=self.ts,
            version=self.version,
            route=self.route,
            protocol=self.protocol,
            status=status,
            code=code,
            rows=self.rows,
            body_bytes=self.body_bytes,
            seconds=time.perf_counter() - self.start,
            model_seconds=self.model_seconds,
            key_id=self.key_id,
            caller=self.caller,
            fallback_from=self.fallback_from,
            columns=self.columns,
            outputs=self.outputs,
            client=self.headers.get(FORWARDED_FOR, b"")[-_CLIENT_BYTES:].decode("latin-1") or None,
            traceparent=None if trace is None else trace.decode("latin-1"),
            fallback_code=self.fallback_code,
            epoch=self.epoch,
        )


def _nothing() -> None:
    pass


def headers_in(metadata: Sequence[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """Return a call's metadata as headers; ``request_id`` counts as ``x-request-id``, which takes precedence."""
    given = [
        (
            name.lower().encode("latin-1", "replace"),
            value if isinstance(value, bytes) else value.encode("latin-1", "replace"),
        )
        for name, value in metadata
    ]
    return given + [(b"x-request-id", value) for name, value in given if name == b"request_id"]


def headers_of(given: Iterable[tuple[bytes, bytes]], *more: bytes) -> dict[bytes, bytes]:
    """Return the first value of each header that an answer depends on, those named ``more`` included.

    Repeated pins are joined into one, as a proxy may do too, so that none is ignored; so are addresses.
    """
    wanted = HEADERS.union(more) if more else HEADERS
    found: dict[bytes, bytes] = {}
    for name, value in given:
        if name not in wanted:
            continue
        if name not in found:
            found[name] = value
        elif name in {PIN_HEADER, FORWARDED_FOR}:
            found[name] += b", " + value
    return found


def peer_of(headers: Mapping[bytes, bytes]) -> str | None:
    """Return the address of the client as the endpoint's proxy saw it; None where no proxy says it."""
    return headers.get(FORWARDED_FOR, b"").rpartition(b",")[2].strip().decode("latin-1") or None


def usable_id(text: str) -> str | None:
    """Return an id of 1 to 128 printable ASCII characters, None for others: they could split a header or a log line."""
    return text if 0 < len(text) <= 128 and text.isascii() and text.isprintable() else None


def request_id_of(given: bytes | None) -> str:
    """Return a client's id if it is usable, else a new one."""
    return (given is not None and usable_id(given.decode("latin-1"))) or str(uuid.uuid4())
