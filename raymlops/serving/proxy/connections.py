"""HTTP connections with bounded headers, and exactly one response per request.

Owns the deadline and the size limit of a request's headers, the handling of upgrade offers, how a connection closes
while its client still sends or does not read, and the notice of a client's disconnect. Knows nothing of applications: a
request with complete headers goes to uvicorn (0.54).

It works around these properties of uvicorn. It waits for headers forever and keeps all of them. It parses what follows
an upgrade offer as the next request, although it is this one's body. It closes a connection at once after its last
response, which resets it for a client that is still sending. It keeps a response that its client does not read. And an
application must poll for its client's disconnect.
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from raymlops.serving.arrival import ARRIVED, stamp
from raymlops.serving.proxy.disconnect import CLIENT, Client, has_ended
from raymlops.serving.proxy.open_connections import OpenConnections
from raymlops.serving.refusal import Refusal, error_body, refusal_headers
from raymlops.serving.telemetry.metrics import count_refusal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

HEADERS_S = 10.0
"""How long the first request of a connection, and the headers of a later one, may take to arrive."""
LINGER_S = 2.0
"""How long a client that has its response may pause while it is still sending, before the connection closes: closing at
once would reset the connection, and the response with it."""
LINGER_BYTES = 16_384
"""How much it has to send in that time: a slow one is taken for one that pauses."""
UNREAD_S = 30.0
"""How long a client may read nothing of a response that is sent."""
LONGEST_LINGER_S = 30.0
"""How long it may continue to send in all."""
MAX_HEADER_BYTES = 16_384
VARIABLE = "RAYMLOPS_MAX_HEADER_BYTES"
"""Another bound, for a whole cluster: it applies before a model's own settings are known, and to all models."""

FULL = Refusal(503, "overloaded", "too many connections; try again", retry_after_s=1.0)
_REASONS = {
    400: "Bad Request",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def max_header_bytes(environment: Mapping[str, str] = os.environ) -> int:
    """Return the size limit of headers in this cluster; a value that is not a number above 0 is ignored."""
    text = environment.get(VARIABLE, "")
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 2**31 else MAX_HEADER_BYTES


def too_large(limit: int) -> Refusal:
    """Return the refusal of headers that are too large, the same wherever it is detected."""
    return Refusal(431, "headers_too_large", f"path and headers have more than {limit} bytes")


class Connection(HttpToolsProtocol):
    """A uvicorn connection that bounds the time and the size of headers."""

    headers_s = HEADERS_S
    longest_linger_s = LONGEST_LINGER_S
    unread_s = UNREAD_S
    all_open = OpenConnections()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limit = max_header_bytes()
        self._client = Client(self._look_for_end)
        self._open = self._partial = False
        self._ended = False
        self._taken = 0
        self._arrived = stamp()
        self._deadline: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._lingers_until: float | None = None
        self._lingered = 0
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request."""
        super().connection_made(transport)
        if self.all_open.open(self):
            self._deadline = self.loop.call_later(self.headers_s, self._late)
        else:
            self._refuse(FULL)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and notify the application that handles a request of this client."""
        self._stop()
        self.all_open.close(self)
        if self._unread is not None:
            self._unread.cancel()
        busy = self._busy
        super().connection_lost(exc)
        if busy:
            running = self._running
            assert running is not None
            running.disconnected = True  # uvicorn says so to the last request alone, which may wait behind this one
            self._client.leave()

    def data_received(self, data: bytes) -> None:
        """Parse data; headers that are still incomplete are timed, and counted."""
        # Bytes before a request count as its own: with these pieces at most the bound itself, for pipelined requests.
        if len(data) <= self._limit:
            self._receive(data)
            return
        for start in range(0, len(data), self._limit):
            self._receive(data[start : start + self._limit])

    def pause_writing(self) -> None:
        """Hold the response back, which has more than the transport buffers, and see whether the client reads it."""
        super().pause_writing()
        self._expect_reading()
        self.all_open.unread(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Continue with the response, which the client has read so far."""
        super().resume_writing()
        self.all_open.unread(self, 0)

    def _receive(self, data: bytes) -> None:
        if self._ended:
            self._linger(len(data))
            return
        self._feed(data)
        if self._ended or not self._partial:
            return
        self._taken += len(data)
        if self._taken > 2 * self._limit:  # the middleware checks complete headers against the exact bound
            if self._open or self._busy:
                self._refuse(too_large(self._limit))
            else:
                self.transport.close()  # these are trailers of a request that has its response
        elif self._open and self._deadline is None:
            self._deadline = self.loop.call_later(self.headers_s, self._late)

    def _feed(self, data: bytes) -> None:
        """Parse data; a request with an upgrade offer is parsed again without the offer.

        The parser would end such a request after its headers, and parse its body as a request of its own.
        """
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                elif self.parser.get_method() == b"CONNECT":
                    self._refuse(Refusal(405, "method_not_allowed", "got CONNECT; this is not a proxy"))
                else:
                    data = self._without_offer() + data[offer.args[0] :]
                    continue
            except httptools.HttpParserError:
                self.send_400_response("not an HTTP request")
            return

    def _without_offer(self) -> bytes:
        """Return the head of a request without its upgrade offer, and reset the parser for it."""
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        for name, given in self.headers:
            value = given
            if name == b"connection":
                value = b", ".join(option for option in map(bytes.strip, given.split(b",")) if not _offers(option))
            if not _offers(name) and (value or name != b"connection"):
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return b"\r\n".join([*lines, b"", b""])

    def handle_websocket_upgrade(self) -> None:
        """Refuse an invalid handshake: the library would answer in plain text, or wait forever."""
        given = dict(self.headers)
        whole = given.get(b"sec-websocket-version") == b"13" and b"sec-websocket-key" in given
        if self._busy:
            self.transport.close()  # an earlier request is still unanswered, and the library would answer first
        elif self.parser.get_method() == b"GET" and whole:
            self.all_open.close(self)  # the library takes the connection over
            super().handle_websocket_upgrade()
        else:
            self._refuse(Refusal(400, "bad_request", "a websocket handshake needs GET, a key and version 13"))

    def send_400_response(self, msg: str) -> None:
        """Refuse invalid HTTP."""
        self._refuse(Refusal(400, "bad_request", msg))

    def on_message_begin(self) -> None:
        """Start to count a request's headers."""
        super().on_message_begin()
        self._open = self._partial = True
        self._taken, self._arrived = 0, stamp()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer, which nobody reads, is dropped."""
        if self._open:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Take a part of a body, which has its own bound; trailers, and extensions of chunks, have that of headers."""
        self._taken = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Stop the clock, and start the application unless the request has to be parsed again."""
        self._open = False
        self._stop()
        if self._offered():
            return
        self.scope[CLIENT] = self._client  # type: ignore[literal-required]
        self.scope[ARRIVED] = self._arrived  # type: ignore[literal-required]
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self.cycle.transport = _Ending(self)  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        """Finish a request, unless it has to be parsed again."""
        if not self._offered():
            self._partial = False
            self._stop()
            super().on_message_complete()
            if self._busy:
                self.all_open.works(self)

    def on_response_complete(self) -> None:
        """Continue with the next request; the unread body of an answered one has a deadline too."""
        running = self._running
        super().on_response_complete()
        if running is not None and running.more_body and not self._ended and not self.transport.is_closing():
            self._stop()
            self._deadline = self.loop.call_later(self.longest_linger_s, self.transport.close)
        if not self._busy:
            self.all_open.waits(self)
        self._expect_reading()

    def end(self) -> None:
        """Close the connection after its last response; a client that is still sending may finish, unread."""
        running = self._running
        if running is not None and running.more_body and running.response_complete:
            self._linger()
        else:
            self.transport.close()

    @property
    def _busy(self) -> bool:
        """Return whether a request is unanswered."""
        running = self._running
        return running is not None and not running.response_complete and not running.disconnected

    def _look_for_end(self) -> None:
        """Abort the connection if its client has ended it while its body is not read, which hides that."""
        running = self._running
        if running is None or not self._busy or not has_ended(self.transport):
            return
        running.disconnected = True
        running.message_event.set()
        self._client.leave()
        self.transport.abort()

    def _expect_reading(self, before: int | None = None) -> None:
        """Abort the connection of a client that reads nothing of what is sent to it, also while it is closing."""
        left = self.transport.get_write_buffer_size()
        if before is None and self._unread is not None:
            return
        if left and (before is None or left < before):
            self._unread = self.loop.call_later(self.unread_s, self._expect_reading, left)
            return
        self._unread = None
        if left:
            self.transport.abort()

    def _offered(self) -> bool:
        return bool(self.parser.should_upgrade()) and not self._should_upgrade()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self._open:
            self._refuse(Refusal(408, "slow_headers", f"the headers were not complete within {self.headers_s:g} s"))
        else:
            self.transport.close()  # no request, no response

    def _refuse(self, refusal: Refusal) -> None:
        self._stop()
        if self.transport.is_closing():
            return
        running = self._running
        if running is not None and self._busy:
            if running.response_started and running.more_body:
                self.transport.close()
                return
            if not running.more_body:
                # The client would take this for the response to an earlier request, which is still unanswered: that
                # one is the last.
                self._ended = True
                running.keep_alive = False
                self.pipeline.clear()
                return
            running.disconnected = True  # its own body is at fault, so that this is its response
            running.message_event.set()
            self._client.leave()
        count_refusal(refusal)
        request_id = str(uuid.uuid4())
        body = error_body(refusal, request_id)
        lines = (
            f"HTTP/1.1 {refusal.status} {_REASONS[refusal.status]}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            *(f"{name.decode()}: {value.decode()}" for name, value in refusal_headers(refusal)),
            "connection: close",
        )
        self.transport.write("".join(f"{line}\r\n" for line in (*lines, "")).encode() + body)
        self._linger()

    def _linger(self, received: int = 0) -> None:
        """Discard data until the client ends, pauses, or exceeds the limit."""
        self._ended = True
        if self.transport.is_closing() or self._busy:
            return
        now = self.loop.time()
        if self._lingers_until is not None:
            self._lingered += received
            if self._lingered < LINGER_BYTES:
                return
            self._lingered = 0
        else:
            self._lingers_until = now + self.longest_linger_s
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.flow.resume_reading()
        self._stop()
        left = min(LINGER_S, self._lingers_until - now)
        if left > 0:
            self._deadline = self.loop.call_later(left, self.transport.close)
        else:
            self.transport.close()


class _Ending:
    """The transport of one response: closing it ends the connection as ``Connection.end`` does."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.end


def _offers(name: bytes) -> bool:
    """Return whether a header, or an option of ``connection``, is part of an upgrade offer."""
    return name.lower() in {b"upgrade", b"http2-settings"}
