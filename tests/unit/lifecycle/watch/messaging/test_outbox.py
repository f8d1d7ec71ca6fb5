"""Messages reach every messenger: real HTTP receivers, real processes that send, real kills."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from killed_at import forked
from receiver import receiver
from stored import put

from raymlops.lifecycle.watch.messaging import outbox as outbox_module
from raymlops.lifecycle.watch.messaging.messengers import Delivery
from raymlops.lifecycle.watch.messaging.outbox import LEASE, MAX_RETRY_S, SENDERS, THREAD, TURN_S, Outbox
from raymlops.records import BundleRef
from raymlops.state.lease import lease
from raymlops.state.store import Deployment, State
from raymlops.state.watch.incidents import Filed, Incident, record_window
from raymlops.state.watch.incidents import tell as write_messages
from raymlops.state.watch.messages import Message, Told, messages_of, unsent_messages
from raymlops.state.watch.windows import JudgedWindow

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LATER = datetime.now(UTC) + timedelta(days=1000)
"""When every retry is due."""


@pytest.fixture
def messenger():
    with receiver() as found:
        yield found


@pytest.fixture
def watch(state, monkeypatch):
    """Return what makes a model live whose messages go to these URLs."""

    def make(name, *urls):
        variable = f"NOTIFY_{name.upper()}"
        monkeypatch.setenv(variable, "\n".join(urls))
        monitor = {"notify": {"env": variable}} if urls else {}
        bundle = BundleRef("file:///bundles/" + "d" * 64, "d" * 64)
        put(state, name, [Deployment(name, 7, bundle, "run", "champion", {}, monitor=monitor)])

    return make


def tell(state, name, *whats):
    """File an incident of a model with its messages, as a judgement does."""
    for day, what in enumerate(whats):
        start = FIRST + day * DAY
        incident = Incident(f"i-{name}", name, "inputs", "drift", 0, FIRST, start, 1, "hour")
        message = Message(f"{name}-{what}", incident.id, what, f"{name} {what}", "what moved", start)
        window = JudgedWindow(name, "inputs", "drift", 0, start, start + DAY, 7, "alarm", "why", 1_000, start + DAY)
        record_window(state, window, lambda known, incident=incident: [] if known else [Filed(incident)])
        write_messages(state, lambda *_, message=message: [(message, [])])


def test_every_messenger_gets_a_message_once(state, url, watch, messenger):
    """A second run sends nothing; what was sent is kept as sent."""
    watch("m", messenger.url("a"), messenger.url("b"))
    tell(state, "m", "opened")
    for _ in range(2):
        Outbox(state, url).run(LATER)
    assert sorted(messenger.got) == [("a", "m opened"), ("b", "m opened")]
    assert {(body["message"], body["type"]) for body in messenger.bodies} == {("what moved", "warning")}
    (message,) = messages_of(state, "m")
    assert (message.attempts, message.retry_at, message.last_error, len(message.reached)) == (1, None, None, 2)
    assert message.sent_at is not None


@pytest.mark.parametrize("what", get_args(Told))
def test_every_kind_of_message_is_sent(state, url, watch, fake, what):
    """Whatever an incident or a retraining writes, a messenger gets."""
    watch("m", "json://127.0.0.1")
    tell(state, "m", what)
    Outbox(state, url).run(LATER)
    assert [one.last_error for one in messages_of(state, "m")] == [None]
    assert unsent_messages(state) == {}


def test_a_message_that_cannot_be_sent_holds_up_no_other(state, url, watch, fake):
    """Its error is kept with it alone, and it is tried again."""
    watch("m", "json://127.0.0.1")
    fake["m opened"] = lambda: 1 / 0
    tell(state, "m", "opened", "acknowledged", "closed")
    Outbox(state, url).run(LATER)
    ((name, (message,)),) = unsent_messages(state).items()
    assert (name, message.what, message.attempts) == ("m", "opened", 1)
    assert "ZeroDivisionError" in message.last_error
    assert [one.last_error for one in messages_of(state, "m") if one.what != "opened"] == [None, None]


def test_one_that_fails_is_tried_again_and_the_others_are_not(state, url, watch, messenger):
    """At growing intervals, in order, and not with each message that waits for it."""
    watch("m", messenger.url("a"), messenger.url("b"), "nope://x")
    tell(state, "m", "opened", "closed")
    messenger.answers["b"] = 503
    outbox = Outbox(state, url)
    outbox.run(FIRST)
    assert messenger.titles("a") == ["m opened", "m closed"]
    assert messenger.titles("b") == ["m opened"]
    for message in messages_of(state, "m"):
        assert "URL 2 (JSON): answered 503" in message.last_error
        assert "URL 3: unknown to apprise, or incomplete" in message.last_error
        assert message.retry_at - state.now() <= timedelta(seconds=30)
    outbox.run(state.now())
    assert len(messenger.got) == 3, "not due yet"
    messenger.answers.clear()
    watch("m", messenger.url("a"), messenger.url("b"))
    outbox.run(LATER)
    assert messenger.titles("a") == ["m opened", "m closed"]
    assert messenger.titles("b") == ["m opened", "m opened", "m closed"]
    assert unsent_messages(state) == {}


def test_retries_grow_to_an_hour(state, url, watch, monkeypatch):
    """Of a variable that is not set where the controller runs, which is said by its name."""
    watch("m", "json://127.0.0.1")
    monkeypatch.delenv("NOTIFY_M")
    tell(state, "m", "opened")
    for wait_s in (30, 60, 120, 240, 480, 960, 1920, MAX_RETRY_S, MAX_RETRY_S):
        wait, before = timedelta(seconds=wait_s), state.now()
        Outbox(state, url).run(LATER)
        (message,) = messages_of(state, "m")
        assert before + wait <= message.retry_at <= state.now() + wait
    assert (message.attempts, message.last_error) == (9, "monitor.notify: the environment variable NOTIFY_M is not set")


def test_a_messenger_that_hangs_holds_up_nobody_else(state, url, watch, messenger):
    """Neither the other one of its model, nor another model."""
    released = threading.Event()
    messenger.answers["slow"] = lambda: released.wait(30) and 200
    watch("m", messenger.url("slow") + "?rto=1", messenger.url("a"))
    watch("n", messenger.url("b"))
    tell(state, "m", "opened")
    tell(state, "n", "opened")
    Outbox(state, url).run(LATER)
    released.set()
    assert (messenger.titles("a"), messenger.titles("b")) == (["m opened"], ["n opened"])
    ((name, (message,)),) = unsent_messages(state).items()
    assert (name, message.last_error, len(message.reached)) == ("m", "URL 1 (JSON): cannot be reached", 1)


@pytest.fixture
def fake(monkeypatch):
    """Return what decides, by the title of a message, whether its messenger takes it; no process is started."""
    answers = {}

    def deliver(urls, *, title, body, tone, skip=()):
        yield from (Delivery(1, "JSON", "k", answers.get(title, lambda: None)()) for _ in urls)

    monkeypatch.setattr(outbox_module, "deliver", deliver)
    return answers


def test_what_is_new_is_sent_while_others_hang(state, url, watch, fake):
    """Models whose messenger hangs take some of the places, and in between come those that were tried least."""
    held, began, order = threading.Event(), threading.Semaphore(0), []

    def hang(name):
        order.append(name)
        began.release()
        return None if held.wait(30) else "cannot be reached"

    slow = [f"slow{number}" for number in range(SENDERS - 1)]
    for name in (*slow, "new"):
        watch(name, "json://127.0.0.1")
        fake[f"{name} opened"] = lambda name=name: hang(name)
    arrived = threading.Event()
    fake["new opened"] = arrived.set
    for name in slow:
        tell(state, name, "opened")
    outbox = Outbox(state, url)
    outbox(LATER)
    for _ in slow:
        assert began.acquire(timeout=30)
    tell(state, "new", "opened")
    outbox(LATER)
    assert arrived.wait(30), "it waits for other models"
    assert not held.is_set()
    held.set()
    outbox._thread.join()
    assert unsent_messages(state) == {}
    assert sorted(order) == slow


def test_those_that_were_tried_least_come_first(state, url, watch, fake):
    """A model whose messenger fails again and again waits behind one that was not tried."""
    order = []
    names = [f"m{number:02}" for number in range(SENDERS * 2)]
    for name in names:
        watch(name, "json://127.0.0.1")
        tell(state, name, "opened")
        fake[f"{name} opened"] = lambda: "cannot be reached"
    Outbox(state, url).run(LATER)
    assert {queue[0].attempts for queue in unsent_messages(state).values()} == {1}
    for name in (*names, "new"):
        fake[f"{name} opened"] = lambda name=name: order.append(name)
    watch("new", "json://127.0.0.1")
    tell(state, "new", "opened")
    Outbox(state, url).run(LATER)
    assert sorted(order) == [*names, "new"]
    assert "new" in order[:SENDERS]


def test_a_turn_is_bounded_and_the_next_one_goes_on(state, url, watch, fake):
    """What it did not begin is not counted as tried, also of a model with many messages."""
    seconds = [0.0]

    def slow():
        seconds[0] += TURN_S

    watch("m", "json://127.0.0.1")
    tell(state, "m", "opened", "acknowledged", "closed")
    for what in ("opened", "acknowledged", "closed"):
        fake[f"m {what}"] = slow
    outbox = Outbox(state, url, clock=lambda: seconds[0])
    for left in (["acknowledged", "closed"], ["closed"]):
        outbox.run(LATER)
        (queue,) = unsent_messages(state).values()
        assert [(one.what, one.attempts, one.retry_at) for one in queue] == [(what, 0, None) for what in left]
    outbox.run(LATER)
    assert unsent_messages(state) == {}


def test_a_model_without_messengers_has_nothing_waiting(state, url, watch):
    """Nobody is to be told, now or once a messenger is named."""
    watch("m")
    tell(state, "m", "opened")
    Outbox(state, url).run(LATER)
    assert unsent_messages(state) == {}


def test_what_became_of_a_model_that_was_removed_is_told(state, url, watch, messenger):
    """To those who got the alarm."""
    watch("m", messenger.url())
    tell(state, "m", "closed")
    put(state, "m", [], action="remove")
    Outbox(state, url).run(LATER)
    assert messenger.titles() == ["m closed"]


def test_one_process_sends_at_a_time(state, url, watch, messenger):
    """Where another one is at it, nothing is sent twice, and nothing is an error."""
    watch("m", messenger.url())
    tell(state, "m", "opened")
    with lease(url, LEASE, purpose="a test"):
        Outbox(state, url).run(LATER)
    assert messenger.got == []
    assert messages_of(state, "m")[0].attempts == 0


def test_the_controller_does_not_wait_for_messengers(state, url, watch, messenger):
    """A thread sends, one at a time, and none begins where nothing is due."""
    outbox, held = Outbox(state, url), threading.Event()
    outbox(LATER)
    assert [thread.name for thread in threading.enumerate() if thread.name == THREAD] == []
    messenger.answers["a"] = lambda: held.wait(30) and 200
    watch("m", f"{messenger.url()}?rto=30")
    tell(state, "m", "opened")
    for _ in range(3):
        outbox(LATER)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == THREAD)
    held.set()
    thread.join()
    assert messenger.titles() == ["m opened"]
    assert unsent_messages(state) == {}


def test_without_apprise_the_way_to_install_it_is_said(state, url, watch, monkeypatch):
    """Where the operator looks, and the controller goes on."""
    watch("m", "json://127.0.0.1:9")
    tell(state, "m", "opened")
    monkeypatch.setitem(sys.modules, "apprise", None)
    Outbox(state, url).run(LATER)
    (message,) = messages_of(state, "m")
    assert message.last_error == (
        "monitor.notify needs apprise, which is not installed (pip install 'raymlops[notify]')"
    )


def test_no_part_of_a_url_is_kept_or_logged(state, url, watch, tmp_path, caplog):
    """Neither password nor path nor query, whether it is sent, refused or not even a URL of a messenger."""
    caplog.set_level(logging.DEBUG)
    with receiver() as messenger:
        base = f"127.0.0.1:{messenger.port}"
        messenger.answers["hunter24"] = 401
        sent = f"json://u:hunter22@{base}/tok3n?-key=hunter23"
        watch("m", sent, f"json://{base}/hunter24", "slack://hunter25/x/y", "hunter26")
        tell(state, "m", "opened")
        Outbox(state, url).run(LATER)
        assert len(messenger.got) == 2
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for text in ("hunter2", "tok3n", base):
        assert text.encode() not in kept
        assert text not in caplog.text


def test_a_kill_repeats_one_message_at_most_once(state, url, watch, messenger):
    """Killed while the messenger has it and the mark is not written, at each message; then nothing is sent again."""
    watch("m", messenger.url())
    tell(state, "m", "opened", "closed")
    starting, running, killed = threading.Lock(), [], set()

    def kill():
        title = messenger.got[-1][1]
        if title not in killed:
            killed.add(title)
            with starting:
                os.kill(running[-1], signal.SIGKILL)
            with suppress(ChildProcessError):  # it was waited for
                os.waitid(os.P_PID, running[-1], os.WEXITED | os.WNOWAIT)

    def send():
        with State.open(url) as opened:
            Outbox(opened, url).run(LATER)

    messenger.answers["a"] = kill
    for _ in range(2):
        with starting:
            running.append(forked(send))
        assert os.waitstatus_to_exitcode(os.waitpid(running[-1], 0)[1]) == -9
    for _ in range(2):
        Outbox(state, url).run(LATER)
    assert messenger.titles() == ["m opened", "m opened", "m closed", "m closed"]
    assert unsent_messages(state) == {}
