"""Which URLs are messengers, and what becomes of one message at each, by the process that sends."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from receiver import receiver

from raymlops.config.base import SecretRef
from raymlops.config.load import load_data
from raymlops.errors import ConfigError, UsageError
from raymlops.lifecycle.watch.messaging.messengers import MAX_URLS, check_notify, deliver, send_test


@pytest.fixture
def notify(monkeypatch):
    """Return what makes a reference to these URLs."""

    def make(*urls):
        monkeypatch.setenv("NOTIFY", "\n".join(urls))
        return SecretRef(env="NOTIFY")

    return make


def test_a_url_that_apprise_does_not_know_is_named_by_its_number(notify):
    """Of another scheme, without a part that its service needs, or no URL at all; none is repeated."""
    known = [
        "json://host/x",
        "mailto://user:pass@example.com",
        "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#a",
    ]
    assert check_notify(notify(*known)) == ()
    with pytest.raises(ConfigError) as raised:
        check_notify(notify("slak://secret1", known[0], "slack://secret2", "secret3"))
    assert str(raised.value).splitlines()[:3] == [
        f"monitor.notify: URL {number}: unknown to apprise, or incomplete" for number in (1, 3, 4)
    ]
    assert "secret" not in str(raised.value)


def test_what_cannot_be_read_here_is_a_warning(monkeypatch):
    """It may be where the controller runs; without messengers nothing is looked at."""
    assert check_notify(None) == ()
    monkeypatch.delenv("NOTIFY", raising=False)
    (warning,) = check_notify(SecretRef(env="NOTIFY"))
    assert warning.startswith("monitor.notify: the environment variable NOTIFY is not set; the controller, ")


def test_too_many_urls_are_refused(notify):
    """Before anything is sent to the first ones."""
    with pytest.raises(ConfigError, match=f"got {MAX_URLS + 1} lines; at most {MAX_URLS}"):
        check_notify(notify(*["json://host"] * (MAX_URLS + 1)))


def test_a_test_message_says_where_it_arrived(notify):
    """One line a messenger, and no part of its URL."""
    with receiver() as messenger:
        messenger.answers["b"] = 401
        ref = notify(messenger.url("a"), "# a comment", messenger.url("b"))
        data = {"project": {"name": "m"}, "recipe": {"import": "x:Y"}, "monitor": {"notify": {"env": ref.env}}}
        record = send_test(load_data(data).spec)
        assert (record.text(), record.ok) == ("URL 1 (JSON): sent\nURL 2 (JSON): answered 401", False)
        assert str(messenger.port) not in str(record.to_dict())
        assert messenger.titles("a") == ["m: test message"]
    with pytest.raises(UsageError, match="of m is not set"):
        send_test(load_data({**data, "monitor": {}}).spec)


def test_a_messenger_that_never_ends_its_answer_is_given_up(notify):
    """A byte now and then: no socket's timeout ends that. Two of one address are two messengers."""
    ended = threading.Event()

    def drip(server):
        server.settimeout(10)  # where the machine is so busy that it is given up before it has connected
        with contextlib.suppress(OSError), server.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not ended.wait(0.1):
                connection.sendall(b"x-a: b\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server, receiver() as messenger:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        urls = [f"json://127.0.0.1:{server.getsockname()[1]}", messenger.url(), messenger.url()]
        found = {one.number: one for one in deliver(urls, title="t", body="b", tone="info", limit_s=2.0)}
        ended.set()
        thread.join()
        assert len(messenger.got) == 2
    assert {number: one.error for number, one in found.items()} == {1: "did not answer within 2 s", 2: None, 3: None}
    assert len({one.key for one in found.values()}) == 3
