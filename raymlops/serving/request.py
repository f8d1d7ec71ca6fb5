"""The state of one request while it is handled, and the record of it.

Owns the names of the headers that an answer depends on. Knows nothing of HTTP servers, gRPC or models.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from raymlops.predictions.served import Served

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.arrays import Columns
    from raymlops.predictions.served import Route

PIN_HEADER = b"x-raymlops-version"
HEADERS = frozenset(
    {
        *(b"accept", b"authorization", b"x-api-key", b"x-request-id", PIN_HEADER, b"traceparent"),
        *(b"content-length", b"content-encoding", b"content-type", b"inference-header-content-length"),
    }
)


class Exchange:
    """One request, filled in step by step while it is handled."""

    __slots__ = (
        "body_bytes",
        "columns",
        "epoch",
        "fallback_code",
        "fallback_from",
        "headers",
        "key_id",
        "model_seconds",
        "named",
        "outputs",
        "protocol",
        "request_id",
        "route",
        "rows",
        "start",
        "ts",
        "version",
    )

    def __init__(self, headers: Mapping[bytes, bytes], *, request_id: str, version: int) -> None:
        self.headers = headers
        self.request_id = request_id
        self.version = version
        self.route: Route = "champion"
        self.protocol = ""
        self.ts = time.time()
        self.start = time.perf_counter()
        self.rows = 0
        self.body_bytes = 0
        self.model_seconds = 0.0
        self.key_id: str | None = None
        self.named: str | None = None
        """The version that path or message name, where the protocol has a field for it."""
        self.fallback_from: int | None = None
        self.fallback_code: str | None = None
        self.epoch = ""
        self.columns: Columns | None = None
        self.outputs: Columns | None = None

    def served(self, status: int, code: str) -> Served:
        """Return the record of the finished request."""
        trace = self.headers.get(b"traceparent")
        return Served(
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
            fallback_from=self.fallback_from,
            columns=self.columns,
            outputs=self.outputs,
            traceparent=None if trace is None else trace.decode("latin-1"),
            fallback_code=self.fallback_code,
            epoch=self.epoch,
        )
