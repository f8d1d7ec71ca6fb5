"""Headers that come slowly or without end, on a real connection of uvicorn's."""

from __future__ import annotations

import asyncio
import json

import pytest
import uvicorn
from uvicorn.server import ServerState

from raymlops.serving.connections import MAX_HEADER_BYTES, Connection, max_header_bytes

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab"


class Hasty(Connection):
    """Gives up at once, as soon as it may."""

    headers_s = 0.01


async def application(scope, receive, send):
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": body})


def talk(protocol, *pieces, until=b""):
    """Send the pieces one by one; return what comes back up to ``until``, or to the end of the connection."""

    async def conversation():
        config = uvicorn.Config(application, http=protocol, lifespan="off", log_config=None, timeout_keep_alive=60)
        config.load()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: protocol(config, ServerState(), {}), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        answer = await (reader.readuntil(until) if until else reader.read())
        writer.close()
        server.close()
        return answer

    return asyncio.run(asyncio.wait_for(conversation(), 30))


def error(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_a_request_is_answered_as_ever():
    """Whole or in two pieces."""
    assert talk(Connection, REQUEST, until=b"ab").startswith(b"HTTP/1.1 200")
    assert talk(Connection, REQUEST[:20], REQUEST[20:], until=b"ab").startswith(b"HTTP/1.1 200")


def test_headers_that_do_not_come_are_given_up():
    """Half a request is answered with 408 and the connection closed."""
    assert error(talk(Hasty, REQUEST[:30])) == (408, "slow_headers")


def test_so_are_those_of_a_later_request():
    """The first one was answered; the second stops half way."""
    first, _, second = talk(Hasty, REQUEST + REQUEST[:30]).partition(b"\r\n\r\nab")
    assert first.startswith(b"HTTP/1.1 200")
    assert error(second) == (408, "slow_headers")


def test_a_connection_that_asks_nothing_is_closed():
    """Without a word, since there was no request."""
    assert talk(Hasty) == b""


def test_a_handshake_that_is_none_is_refused():
    """A websocket begins with GET; with another method nobody would ever answer."""
    upgrade = b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
    assert talk(Connection, REQUEST.replace(b"\r\n\r\n", b"\r\n" + upgrade)).startswith(b"HTTP/1.1 400")


def test_headers_without_end_are_given_up():
    """Long before they fill the memory, and the client hears why although it is still sending."""
    pieces = [b"GET / HTTP/1.1\r\n", *[b"a: " + b"b" * 1000 + b"\r\n"] * 200]
    assert error(talk(Connection, *pieces)) == (431, "headers_too_large")


@pytest.mark.parametrize(
    ("text", "bound"), [("", MAX_HEADER_BYTES), ("1024", 1024), ("0", 16_384), ("-1", 16_384), ("x", 16_384)]
)
def test_the_bound_comes_from_the_environment(text, bound):
    """What is no bound is not taken for one."""
    assert max_header_bytes({"RAYMLOPS_MAX_HEADER_BYTES": text}) == bound
