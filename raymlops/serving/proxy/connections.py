"""An HTTP connection whose requests must have their headers complete soon, and that never gives two answers to one.

Owns the deadline for the headers of a request and the bound of what is read before they are complete, what becomes of
an offer to speak another protocol, how a connection ends while its client still sends, and who is told that a client
has left. Knows nothing of applications: a request with its headers goes to uvicorn (0.54).

What of uvicorn it works around: it waits for ever for headers and keeps all of them. It takes what follows an offer to
upgrade for the next request, although it is this one's body. It closes a connection at once after its last answer,
which resets it for a client that is still sending. And only an application that asks hears that its client has left.
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from raymlops.serving.refusal import Refusal, error_body

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

HEADERS_S = 10.0
"""How long the first request of a connection, and the headers of a later one, may take to arrive."""
LINGER_S = 2.0
"""How long a client that has its answer may pause in what it is still sending, unread, before it is cut off: closing at
once would reset the connection, and the answer with it."""
LONGEST_LINGER_S = 30.0
"""How long it may go on sending in all."""
MAX_HEADER_BYTES = 16_384
VARIABLE = "RAYMLOPS_MAX_HEADER_BYTES"
"""Another bound, for a whole cluster: it is in force before a model's own settings are known, and for all models."""

CLIENT = "raymlops.client"
"""Key of an ASGI scope for the ``Client``; whoever hands the scope on takes it out."""

_REASONS = {
    400: "Bad Request",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
}


def max_header_bytes(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many bytes the headers of a request may have in this cluster; what is no number above 0 is ignored."""
    text = environment.get(VARIABLE, "")
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 2**31 else MAX_HEADER_BYTES


def too_large(limit: int) -> Refusal:
    """Return the refusal of headers that are larger than allowed, which is the same wherever it is noticed."""
    return Refusal(431, "headers_too_large", f"path and headers have more than {limit} bytes")


class Client:
    """Who is at the other end of a connection, as far as an application cares: whether they have left."""

    __slots__ = ("_tell", "gone")

    def __init__(self) -> None:
        self.gone = False
        self._tell: Callable[[], object] | None = None

    def watch(self, tell: Callable[[], object] | None) -> None:
        """Have this called when they leave with a request unanswered; None ends it."""
        self._tell = tell

    def leave(self) -> None:
        """Note that they have left."""
        self.gone = True
        if self._tell is not None:
            self._tell()


class Connection(HttpToolsProtocol):
    """A connection of uvicorn's that does not wait for ever for headers and does not take them without end."""

    headers_s = HEADERS_S
    longest_linger_s = LONGEST_LINGER_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limit = max_header_bytes()
        self._client = Client()
        self._open = False
        self._ended = False
        self._taken = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._lingers_until: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.headers_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and tell whoever is at work for this client."""
        self._stop()
        busy = self._busy
        super().connection_lost(exc)
        if busy:
            self._client.leave()

    def data_received(self, data: bytes) -> None:
        """Take what came; headers that are still not complete are timed, and counted."""
        if self._ended:
            self._linger()
            return
        self._feed(data)
        if not self._open or self._ended:
            return
        # What was before this request on the wire counts too: at most one read's worth, for pipelined requests alone.
        self._taken += len(data)
        if self._taken > 2 * self._limit:  # the middleware refuses what is complete, with the exact bound
            self._refuse(too_large(self._limit))
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.headers_s, self._late)

    def _feed(self, data: bytes) -> None:
        """Let the parser have data; a request that offers another protocol is parsed again without the offer.

        The parser takes what follows such an offer for the other protocol: it ends the request after its headers, and
        would go on with its body as with a request of its own.
        """
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                elif self.parser.get_method() == b"CONNECT":
                    self._refuse(Refusal(405, "method_not_allowed", "got CONNECT; this is no proxy"))
                else:
                    data = self._without_offer() + data[offer.args[0] :]
                    continue
            except httptools.HttpParserError:
                self.send_400_response("this is no HTTP request")
            return

    def _without_offer(self) -> bytes:
        """Return the head of the request that offers another protocol as it would be without, with a parser for it."""
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
        """Refuse a handshake that is none: the library would answer in a text, or wait for ever for one that is."""
        given = dict(self.headers)
        whole = given.get(b"sec-websocket-version") == b"13" and b"sec-websocket-key" in given
        if self._busy:
            self.transport.close()  # an earlier request is still to be answered, and the library would answer first
        elif self.parser.get_method() == b"GET" and whole:
            super().handle_websocket_upgrade()
        else:
            self._refuse(Refusal(400, "bad_request", "a websocket begins with GET, a key and version 13"))

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP request."""
        self._refuse(Refusal(400, "bad_request", msg))

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        super().on_message_begin()
        self._open, self._taken = True, 0

    def on_headers_complete(self) -> None:
        """Note that its headers are complete, and begin to answer unless it has to be parsed again."""
        self._open = False
        self._stop()
        if self._offered():
            return
        self.scope[CLIENT] = self._client  # type: ignore[literal-required]
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self.cycle.transport = _Ending(self)  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        """Note that a request is complete, which one that is parsed again is not."""
        if not self._offered():
            self._stop()
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request; what is still to come of the body of an answered one has its time too."""
        running = self._running
        super().on_response_complete()
        if running is not None and running.more_body and not self._ended and not self.transport.is_closing():
            self._stop()
            self._deadline = self.loop.call_later(self.longest_linger_s, self.transport.close)

    def end(self) -> None:
        """Close the connection after its last answer; a client that is still sending is let finish, unread."""
        running = self._running
        if running is not None and running.more_body and running.response_complete:
            self._linger()
        else:
            self.transport.close()

    @property
    def _busy(self) -> bool:
        """Return whether an answer is due."""
        running = self._running
        return running is not None and not running.response_complete and not running.disconnected

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
            self.transport.close()  # nothing was asked, so that there is nothing to answer

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
                # The client would take this for the answer to an earlier request, which is still on its way: that one
                # is the last.
                self._ended = True
                running.keep_alive = False
                self.pipeline.clear()
                return
            running.disconnected = True  # its own body is at fault, so that this is its answer
            running.message_event.set()
            self._client.leave()
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
        self._linger()

    def _linger(self) -> None:
        """Read and forget, until the client has ended, has paused, or has gone on for too long."""
        self._ended = True
        if self.transport.is_closing() or self._busy:
            return
        now = self.loop.time()
        if self._lingers_until is None:
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
    """The transport of one answer: closing it ends the connection as ``Connection.end`` does."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.end


def _offers(name: bytes) -> bool:
    """Return whether a header, or an option of the connection, is part of an offer to speak another protocol."""
    return name.lower() in {b"upgrade", b"http2-settings"}
