"""Headers without end, offers of other protocols, clients that leave: on a real connection of uvicorn's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging

import pytest
import uvicorn
from uvicorn.server import ServerState

from raymlops.serving.proxy.connections import (
    LONGEST_LINGER_S,
    MAX_HEADER_BYTES,
    Connection,
    max_header_bytes,
)
from raymlops.serving.proxy.disconnect import CLIENT
from raymlops.serving.proxy.open_connections import OpenConnections, most_connections

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab"


class Hasty(Connection):
    """Gives up at once, as soon as it may."""

    headers_s = 0.01
    longest_linger_s = 0.01


async def application(scope, receive, send):
    """Answer with method, path and body."""
    body, more = scope["method"].encode() + scope["path"].encode(), True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    await answer(send, 200, body)


async def answer(send, status, body, *headers):
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def refusing(scope, receive, send):
    """Answer before the body has come, and for the last time."""
    await answer(send, 413, b"no", (b"connection", b"close"))


@contextlib.asynccontextmanager
async def listening(app, protocol=Connection):
    """Yield the address of a server; leaving waits until its connections have ended."""
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, timeout_keep_alive=60)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()
    server.close()
    while state.connections:  # noqa: ASYNC110 - nothing tells when the set is empty
        await asyncio.sleep(0.001)


def talk(protocol, *pieces, until=b"", app=application):
    """Send the pieces one by one; return what comes back up to ``until``, or to the end of the connection."""

    async def conversation():
        async with listening(app, protocol) as address:
            reader, writer = await asyncio.open_connection(*address)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            answer = await (reader.readuntil(until) if until else reader.read())
            writer.close()
            await writer.wait_closed()
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
    first, _, second = talk(Hasty, REQUEST + REQUEST[:30]).partition(b"\r\n\r\nPOST/ab")
    assert first.startswith(b"HTTP/1.1 200")
    assert error(second) == (408, "slow_headers")


def test_a_connection_that_asks_nothing_is_closed():
    """Without a word, since there was no request."""
    assert talk(Hasty) == b""


def test_a_handshake_that_is_none_is_refused():
    """A websocket begins with GET; with another method nobody would ever answer. And it has a key and a version."""
    upgrade = b"\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    key = b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    get = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    for bad in (REQUEST.replace(b"\r\n\r\n", upgrade + key), get.replace(b"\r\n\r\n", upgrade + b"\r\n")):
        assert error(talk(Connection, bad)) == (400, "bad_request")


OFFER = b"upgrade: h2c\r\nconnection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAMAAABk\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 32\r\n" + OFFER
SMUGGLED = b"GET /other HTTP/1.1\r\nhost: x\r\n\r\n"
"""32 bytes that are a body."""
LAST = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize("cut", [1, len(POST) - 40, len(POST), len(POST) + 5])
def test_an_offer_of_another_protocol_is_ignored(cut):
    """RFC 9110 7.8: the request is answered with its whole body, wherever the pieces of it begin."""
    sent = POST + b"x" * 32
    assert talk(Connection, sent[:cut], sent[cut:], until=b"x" * 32).endswith(b"\r\n\r\nPOST/p" + b"x" * 32)


def test_a_late_body_is_never_a_request():
    """What follows an offer is the body, and what follows the body is the next request: there are two answers."""
    answers = talk(Connection, POST, SMUGGLED, LAST)
    assert answers.count(b"HTTP/1.1 200") == 2
    assert b"POST/p" + SMUGGLED + b"HTTP/1.1 200" in answers
    assert answers.endswith(b"GET/last")


def test_an_offer_in_chunks_and_a_thousand_offers_in_one_piece():
    """Each is parsed again by itself."""
    chunked = b"POST /p HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n" + OFFER + b"2\r\nab\r\n0\r\n\r\n"
    assert talk(Connection, chunked, until=b"ab").endswith(b"POST/pab")
    get = b"GET /g HTTP/1.1\r\nhost: x\r\n" + OFFER
    assert talk(Connection, get * 1000 + LAST).count(b"HTTP/1.1 200") == 1001


@pytest.mark.parametrize("offer", [b"upgrade: h2c\r\n\r\n", b"upgrade: websocket\r\nconnection: close\r\n\r\n"])
def test_what_is_no_offer_stays_what_it_is(offer):
    """Without the option in ``connection`` the header says nothing."""
    assert b"GET/g" in talk(Connection, b"GET /g HTTP/1.1\r\nhost: x\r\n" + offer, until=b"GET/g")


def test_a_tunnel_is_refused():
    """CONNECT has no path that anything here would answer."""
    assert error(talk(Connection, b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n")) == (405, "method_not_allowed")


def test_what_is_no_http_is_refused_in_our_form():
    """Then the connection is closed."""
    assert error(talk(Connection, b"\x16\x03\x01\x02\x00\x01\r\n\r\n")) == (400, "bad_request")


def test_a_refusal_never_takes_the_place_of_an_earlier_answer():
    """The first request is still being answered when the second turns out to be none: one answer, and the end."""
    for bad in (b"\x16\x03\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"):
        answers = talk(Connection, REQUEST + bad)
        assert answers.count(b"HTTP/1.1") == answers.count(b"POST/ab")
        assert answers.count(b"HTTP/1.1") <= 1


def test_a_body_that_is_none_is_refused_at_once():
    """Nobody waits for the rest of it; whoever reads it hears that there is none, and answers nothing."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    ended = []

    async def reading(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            pass
        ended.append(message["type"])
        await answer(send, 200, b"never")

    assert error(talk(Connection, head + b"2\r\nab\r\n", b"zz\r\n{}\r\n", LAST, app=reading)) == (400, "bad_request")
    assert ended == ["http.disconnect"]


def test_a_client_that_still_sends_gets_its_last_answer():
    """Four megabytes, of which nobody reads any: closing at once would reset the connection."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n"
    answers = talk(Connection, head, *[bytes(100_000)] * 40, app=refusing)
    assert answers.startswith(b"HTTP/1.1 413")
    assert answers.endswith(b"no")


def test_a_body_that_does_not_come_after_its_answer_is_given_up():
    """Whoever answered did not want it, and would have gone on with the connection."""

    async def unread(scope, receive, send):
        await answer(send, 405, b"no")

    head = b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n"
    assert talk(Hasty, head, b"ab", app=unread).endswith(b"\r\n\r\nno")
    answers = talk(Connection, head, b"abc", LAST, app=unread)
    assert answers.count(b"HTTP/1.1 405") == 2


def test_what_comes_after_the_last_answer_is_no_request():
    """It is the rest of a body that was refused."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n"
    assert talk(Connection, head, SMUGGLED, REQUEST, app=refusing).count(b"HTTP/1.1") == 1


def test_a_client_that_sends_slowly_after_its_answer_is_closed():
    """A byte now and then is no upload that is worth waiting for; one that sends fast gets its answer (see above)."""

    async def conversation():
        async with listening(refusing) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n")
            answer = await reader.readuntil(b"no")
            began = asyncio.get_running_loop().time()
            with contextlib.suppress(ConnectionError):
                while True:  # until the connection is reset
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.1)
            return answer, asyncio.get_running_loop().time() - began

    answer, seconds = asyncio.run(asyncio.wait_for(conversation(), 30))
    assert answer.startswith(b"HTTP/1.1 413")
    assert seconds < LONGEST_LINGER_S


def test_many_requests_in_one_piece_are_all_answered():
    """More bytes than the headers of one request may have."""
    get = b"GET /g HTTP/1.1\r\nhost: x\r\n\r\n"
    assert talk(Connection, get * 2000 + LAST).count(b"HTTP/1.1 200") == 2001


@pytest.mark.parametrize("close", [b"", b"connection: close\r\n"])
def test_an_answer_that_is_not_read_is_dropped_with_its_connection(close):
    """More of it than the kernel takes; the server keeps neither, whether the connection should end or go on."""

    class Impatient(Connection):
        unread_s = 0.05

    async def large(scope, receive, send):
        await answer(send, 200, bytes(16_000_000))

    async def conversation():
        async with listening(large, Impatient) as address:
            _, writer = await asyncio.open_connection(*address, limit=1)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n" + close + b"\r\n")
        writer.close()  # the server has none of its connections left

    asyncio.run(asyncio.wait_for(conversation(), 30))


def test_an_answer_that_is_read_slowly_is_read_to_its_end():
    """As long as there is progress, however long it takes in all."""
    size = 16_000_000

    class Impatient(Connection):
        unread_s = 0.2

    async def large(scope, receive, send):
        await answer(send, 200, bytes(size))

    async def conversation():
        async with listening(large, Impatient) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(LAST)
            count = 0
            while piece := await reader.read(400_000):
                count += len(piece)
                await asyncio.sleep(0.01)
            writer.close()
            return count

    assert asyncio.run(asyncio.wait_for(conversation(), 30)) > size


def test_what_all_clients_have_not_read_is_bounded():
    """One that does not fit any more ends the one that has longest had its answer; the newest is read to its end."""
    size = 16_000_000

    class Bounded(Connection):
        all_open = OpenConnections(most_unread=1_000_000)

    async def large(scope, receive, send):
        await answer(send, 200, bytes(size))

    async def conversation():
        async with listening(large, Bounded) as address:
            first, second = [await asyncio.open_connection(*address, limit=65_536) for _ in range(2)]
            for reader, writer in (first, second):
                writer.write(LAST)
                await reader.readexactly(1)  # it is on its way, and far from read
            assert len(await first[0].read(-1)) < size
            count = 1 + len(await second[0].read(-1))
            for _, writer in (first, second):
                writer.close()
            return count

    assert asyncio.run(asyncio.wait_for(conversation(), 30)) > size


class Few(Connection):
    all_open = OpenConnections(3)


def test_whoever_opens_many_connections_ends_its_own():
    """An idle one of another address stays, although it has waited longer than all of them."""

    class Four(Connection):
        all_open = OpenConnections(4)

    async def conversation():
        async with listening(application, Four) as address:
            other = await asyncio.open_connection(*address, local_addr=("127.0.0.2", 0))
            other[1].write(REQUEST)
            await other[0].readuntil(b"POST/ab")
            many = []
            for _ in range(10):
                many.append(await asyncio.open_connection(*address))
                many[-1][1].write(REQUEST)
                await many[-1][0].readuntil(b"POST/ab")
            other[1].write(REQUEST)
            answered = await other[0].readuntil(b"POST/ab")
            for _, writer in (other, *many):
                writer.close()
            return answered

    assert asyncio.run(asyncio.wait_for(conversation(), 30)).startswith(b"HTTP/1.1 200")


def test_a_new_connection_takes_the_room_of_the_one_that_waits_longest():
    """Idle, or half way through a request; never of one whose request is being answered."""

    async def conversation():
        release = asyncio.Event()

        async def app(scope, receive, send):
            if scope["path"] == "/slow":
                await release.wait()
            await application(scope, receive, send)

        async with listening(app, Few) as address:
            slow = await asyncio.open_connection(*address)
            slow[1].write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
            half = await asyncio.open_connection(*address)
            half[1].write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nab")
            idle = await asyncio.open_connection(*address)
            idle[1].write(REQUEST)
            await idle[0].readuntil(b"POST/ab")
            news = []
            for ended in (half, idle):
                news.append(await asyncio.open_connection(*address))
                news[-1][1].write(REQUEST)
                await news[-1][0].readuntil(b"POST/ab")
                with contextlib.suppress(ConnectionError):
                    assert await ended[0].read() == b""
            release.set()
            answered = await slow[0].readuntil(b"GET/slow")
            for _, writer in (slow, half, idle, *news):
                writer.close()
            return answered

    assert asyncio.run(asyncio.wait_for(conversation(), 30)).startswith(b"HTTP/1.1 200")


def test_where_all_are_at_work_a_new_connection_is_refused():
    """With 503 and when to try again; the others are answered."""

    async def conversation():
        release, begun = asyncio.Event(), asyncio.Semaphore(0)

        async def app(scope, receive, send):
            begun.release()
            await release.wait()
            await application(scope, receive, send)

        async with listening(app, Few) as address:
            busy = [await asyncio.open_connection(*address) for _ in range(3)]
            for _, writer in busy:
                writer.write(REQUEST)
                await begun.acquire()
            reader, writer = await asyncio.open_connection(*address)
            refused = await reader.read()
            writer.close()
            release.set()
            for reader, writer in busy:
                await reader.readuntil(b"POST/ab")
                writer.close()
            return refused

    refused = asyncio.run(asyncio.wait_for(conversation(), 30))
    assert error(refused) == (503, "overloaded")
    assert b"retry-after: 1\r\n" in refused


@pytest.mark.parametrize(("files", "most"), [(1024, 512), (100, 64), (10**6, 16_384), (-1, 16_384)])
def test_as_many_connections_are_held_as_there_are_files_for(files, most):
    """Half of them, since what answers needs files too; -1 is no limit."""
    assert most_connections(files) == most


def test_whoever_is_at_work_hears_that_the_client_has_left():
    """Once, and only while an answer is due."""
    told = []

    async def conversation():
        begun, left = asyncio.Event(), asyncio.Event()

        async def app(scope, receive, send):
            client = scope[CLIENT]
            client.watch(left.set)
            if scope["path"] == "/answered":
                await answer(send, 200, b"")
                return
            begun.set()
            await left.wait()
            told.append(client.gone)

        async with listening(app) as address:
            for path in (b"/answered", b"/waits"):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path)
                await (reader.readuntil(b"\r\n\r\n") if path == b"/answered" else begun.wait())
                assert not left.is_set()
                writer.close()
                await writer.wait_closed()
            await left.wait()

    asyncio.run(asyncio.wait_for(conversation(), 30))
    assert told == [True]


@pytest.mark.parametrize("leaves", [True, False])
def test_that_a_client_has_left_is_seen_while_its_body_is_not_read(leaves):
    """So much of it has come that nothing is read meanwhile, and no event tells the end; who stays is not taken so."""
    seen = []

    async def conversation():
        asked, gone = asyncio.Event(), asyncio.Event()

        async def app(scope, receive, send):
            await receive()
            asked.set()
            await gone.wait()
            client = scope[CLIENT]
            while leaves and not client.has_left():  # noqa: ASYNC110 - no event tells it, which is the point
                await asyncio.sleep(0.001)
            seen.append((client.has_left(), leaves and (await receive())["type"]))
            if not leaves:
                await answer(send, 200, b"", (b"connection", b"close"))

        async with listening(app) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n" + bytes(200_000))
            await writer.drain()
            await asked.wait()
            if leaves:
                writer.transport.abort()
            gone.set()
            if not leaves:
                await reader.read()
            writer.close()

    asyncio.run(asyncio.wait_for(conversation(), 30))
    assert seen == [(True, "http.disconnect") if leaves else (False, False)]


def test_requests_behind_another_of_a_client_that_has_left_end_quietly(caplog):
    """The second of three is being answered: it hears of it, and none is said to have lacked an answer."""

    async def conversation():
        begun, closed, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def app(scope, receive, send):
            if not begun.is_set():
                begun.set()
                await closed.wait()
                await answer(send, 200, b"")
                return
            scope[CLIENT].watch(left.set)
            await left.wait()

        async with listening(app) as address:
            _, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 3)
            await begun.wait()
            writer.close()
            await writer.wait_closed()
            closed.set()
            await left.wait()

    with caplog.at_level(logging.ERROR):
        asyncio.run(asyncio.wait_for(conversation(), 30))
    assert caplog.records == []


def test_headers_without_end_are_given_up():
    """Long before they fill the memory, and the client hears why although it is still sending."""
    pieces = [b"GET / HTTP/1.1\r\n", *[b"a: " + b"b" * 1000 + b"\r\n"] * 200]
    assert error(talk(Connection, *pieces)) == (431, "headers_too_large")


CHUNKED = b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "lengths",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        b"content-length: 5\r\ncontent-length: 5\r\n",
        b"content-length: 5\r\ntransfer-encoding: x, chunked\r\n",
        b"content-length: 5\r\ntransfer-encoding: identity\r\n",
    ],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_body_with_two_lengths_is_refused(version, lengths):
    """Another proxy may have believed the other one, and taken the rest for the next request."""
    sent = b"POST /p HTTP/%s\r\nhost: x\r\n%s\r\n5\r\nhello\r\n0\r\n\r\n" % (version, lengths)
    answer = talk(Connection, sent, LAST)
    assert error(answer) == (400, "bad_request")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("piece", [b"a: b\r\n" * 200, b"b" * 1000], ids=["many", "one"])
def test_trailers_without_end_are_given_up(piece):
    """Many, or a single one: they come after the body, whose own bound does not count them."""
    answer = talk(Connection, CHUNKED, b"2\r\nab\r\n0\r\na: ", *[piece] * 200)
    assert error(answer) == (431, "headers_too_large")


def test_so_are_the_extensions_of_a_chunk():
    """The size of a chunk, and behind it what never becomes one."""
    answer = talk(Connection, CHUNKED, b"2;", *[b"a=b;" * 250] * 200)
    assert error(answer) == (431, "headers_too_large")


def test_trailers_of_an_answered_request_end_its_connection():
    """There is no second answer."""
    answer = talk(Connection, CHUNKED, b"2\r\nab\r\n0\r\na: ", *[b"b" * 1000] * 200, app=refusing)
    assert answer.count(b"HTTP/1.1") == 1


def test_trailers_are_no_headers():
    """Not those of this request, and not of the next one on the connection."""

    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        await answer(send, 200, repr(scope["headers"]).encode())

    request = CHUNKED.replace(b"connection: close\r\n", b"") + b"2\r\nab\r\n0\r\nx-late: 1\r\n\r\n"
    assert b"x-late" not in talk(Connection, request + LAST, app=app)


@pytest.mark.parametrize(
    ("text", "bound"), [("", MAX_HEADER_BYTES), ("1024", 1024), ("0", 16_384), ("-1", 16_384), ("x", 16_384)]
)
def test_the_bound_comes_from_the_environment(text, bound):
    """What is no bound is not taken for one."""
    assert max_header_bytes({"RAYMLOPS_MAX_HEADER_BYTES": text}) == bound
