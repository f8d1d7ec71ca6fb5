"""An HTTP connection whose requests must have their headers complete soon, and not endless.

Owns the deadline for the headers of a request and the bound of what is read before they are complete. Knows nothing of
applications: a request with its headers goes to uvicorn (0.54), which by itself waits for ever and keeps everything.
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from raymlops.serving.reading import Refusal, error_body

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

HEADERS_S = 10.0
"""How long the first request of a connection, and the headers of a later one, may take to arrive."""
LINGER_S = 1.0
"""How long a refused client may go on sending: closing at once would reset the connection, and the answer with it."""
MAX_HEADER_BYTES = 16_384
VARIABLE = "RAYMLOPS_MAX_HEADER_BYTES"
"""Another bound, for a whole cluster: it is in force before a model's own settings are known, and for all models."""

_REASONS = {408: "Request Timeout", 431: "Request Header Fields Too Large"}


def max_header_bytes(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many bytes the headers of a request may have in this cluster; what is no number above 0 is ignored."""
    text = environment.get(VARIABLE, "")
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 2**31 else MAX_HEADER_BYTES


def too_large(limit: int) -> Refusal:
    """Return the refusal of headers that are larger than allowed, which is the same wherever it is noticed."""
    return Refusal(431, "headers_too_large", f"path and headers have more than {limit} bytes")


class Connection(HttpToolsProtocol):
    """A connection of uvicorn's that does not wait for ever for headers and does not take them without end."""

    headers_s = HEADERS_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limit = max_header_bytes()
        self._open = False
        self._refused = False
        self._taken = 0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.headers_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; headers that are still not complete are timed, and counted."""
        if self._refused:
            return
        super().data_received(data)
        if not self._open:
            return
        # What was before this request on the wire counts too: at most one read's worth, for pipelined requests alone.
        self._taken += len(data)
        if self._taken > 2 * self._limit:  # the middleware refuses what is complete, with the exact bound
            self._refuse(too_large(self._limit))
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.headers_s, self._late)

    def handle_websocket_upgrade(self) -> None:
        """Refuse a handshake that is none: the library would wait for ever for one that is."""
        if self.scope["method"] == "GET":
            super().handle_websocket_upgrade()
        else:
            self.send_400_response("Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        super().on_message_begin()
        self._open, self._taken = True, 0

    def on_headers_complete(self) -> None:
        """Note that its headers are complete."""
        self._open = False
        self._stop()
        super().on_headers_complete()

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self._open:
            self._refuse(Refusal(408, "slow_headers", f"the headers were not complete within {self.headers_s:g} s"))
        else:
            self.transport.close()  # nothing was asked, so that there is nothing to answer

    def _refuse(self, refusal: Refusal) -> None:
        self._stop()
        if self.transport.is_closing():
            return
        self._refused = True
        request_id = str(uuid.uuid4())
        body = error_body(refusal, request_id)
        lines = (
            f"HTTP/1.1 {refusal.status} {_REASONS[refusal.status]}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "connection: close",
        )
        self.transport.write("".join(f"{line}\r\n" for line in (*lines, "")).encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._deadline = self.loop.call_later(LINGER_S, self.transport.close)
