from __future__ import annotations

import signal
import threading
import weakref

import pytest

from raymlops.signals import from_handler, remembered, sigterm_kept, stop_asked, undisturbed


@pytest.fixture(autouse=True)
def handlers():
    """SIGTERM interrupts, as in our commands; both handlers are put back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_a_clean_up(number):
    """And is not lost."""
    done = []

    def clean_up():
        with undisturbed():
            signal.raise_signal(number)
            done.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        clean_up()
    assert done == ["cleaned up"]
    assert signal.getsignal(number) is signal.default_int_handler


def test_a_second_signal_does_not_replace_what_is_on_its_way_out():
    """The first one has ended the work already."""

    def work():
        try:
            raise ValueError("first")
        finally:
            with undisturbed():
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(ValueError, match="first"):
        work()


def test_an_error_of_the_clean_up_itself_comes_through():
    """It says what could not be ended."""

    def clean_up():
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("left")

    with pytest.raises(ValueError, match="left"):
        clean_up()


class Node:
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_weak_reference_swallows_is_raised_when_asked_for(number):
    """Python prints and drops what such a callback raises; each question raises it again."""
    node = Node()
    reference = weakref.ref(node, lambda _: signal.raise_signal(number))
    with remembered() as ask:
        ask()
        del node
        assert reference() is None
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                ask()
    assert signal.getsignal(number) is signal.default_int_handler


def test_a_handler_that_returns_has_dealt_with_its_signal():
    """A program that only takes note of SIGTERM is not interrupted, and one that ignores it is left alone."""
    noted = []
    signal.signal(signal.SIGTERM, lambda number, _frame: noted.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with remembered() as ask:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        ask()
    assert noted == [signal.SIGTERM]


def test_an_exit_by_a_handler_is_told_from_one_by_code():
    """Also where the handler is remembered."""

    def leave(number, _frame):
        raise SystemExit(number)

    signal.signal(signal.SIGTERM, leave)
    with pytest.raises(SystemExit) as by_handler, remembered():
        signal.raise_signal(signal.SIGTERM)
    assert from_handler(by_handler.value)
    with pytest.raises(SystemExit) as by_code:
        raise SystemExit(0)
    assert not from_handler(by_code.value)


def test_outside_the_main_thread_there_is_nothing_to_hold():
    """Python could not set a handler there."""
    ran = []

    def work():
        with undisturbed(), sigterm_kept(default_too=True), remembered() as ask:
            ask()
            ran.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [signal.default_int_handler]


@pytest.mark.parametrize(
    ("before", "default_too", "after"),
    [
        (signal.default_int_handler, False, signal.default_int_handler),
        (signal.SIG_DFL, False, signal.SIG_IGN),
        (signal.SIG_DFL, True, signal.SIG_DFL),
    ],
)
def test_a_replaced_handler_comes_back(before, default_too, after):
    """Ours at once; none at all only when there is nothing left to clean up."""
    signal.signal(signal.SIGTERM, before)
    with sigterm_kept(default_too=default_too):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is after


def test_a_signal_that_is_ignored_stays_ignored():
    """As a shell asks of what it starts with ``&``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_asked() as asked, undisturbed():
        signal.raise_signal(signal.SIGINT)
        assert not asked()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
