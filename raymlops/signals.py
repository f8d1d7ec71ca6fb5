"""SIGINT and SIGTERM: deferred, remembered, or turned into a stop request; and handlers that Ray replaces.

Python runs handlers in the main thread alone, so in any other thread there is nothing to do.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType


@contextmanager
def undisturbed() -> Iterator[None]:
    """Defer signals until a block is done that would otherwise leave something open: processes, a run, a study.

    A signal during the block is delivered after it, unless an exception is propagating already, which has the
    same effect.
    """
    held: list[int] = []
    with _handled_by(lambda number, _frame: held.append(number), handled_signals()):
        yield
    if held and sys.exception() is None:
        signal.raise_signal(held[0])


@contextmanager
def remembered() -> Iterator[Callable[[], None]]:
    """Yield a function that raises again what a handler raised since, most often KeyboardInterrupt; call it regularly.

    What a handler raises is lost where it strikes inside a callback that can raise nothing, such as that of a weak
    reference, or inside code that catches everything. A handler that returns has dealt with its signal.
    """
    raised: list[BaseException] = []

    def ask() -> None:
        if raised:
            raise raised[0].with_traceback(None)

    def remember(number: int, frame: FrameType | None) -> None:
        try:
            handlers[signal.Signals(number)](number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in found.items() if callable(handler)}
    with _handled_by(remember, handlers):
        yield ask


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM came, for work that stops at a moment of its own choice.

    A second signal raises KeyboardInterrupt at once, for those who do not want to wait.
    """
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        # Nothing else happens here: whatever it called might be what it interrupts.
        if len(asked) > 1:
            raise KeyboardInterrupt

    with _handled_by(ask, handled_signals()):
        yield lambda: bool(asked)


@contextmanager
def interrupting() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT and SIGTERM, whatever handles them otherwise."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled_by(interrupt, handled_signals()):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], object], numbers: Iterable[int]) -> Iterator[None]:
    """Handle signals by ``handler`` during the block; in any thread but the main one do nothing."""
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                before[number] = signal.getsignal(number)
                signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            _put_back(number, previous)


def handled_signals() -> list[signal.Signals]:
    """Return SIGINT and SIGTERM, without those that this process ignores, as the shell makes ``command &`` do."""
    return [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]


def from_handler(error: BaseException) -> bool:
    """Return whether a signal's handler raised the error, and not the code that it struck."""
    handlers = (signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))
    codes = {getattr(handler, "__code__", None) for handler in handlers} - {None}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


@contextmanager
def sigterm_kept(*, default_too: bool) -> Iterator[None]:
    """Put back the SIGTERM handler that ``ray.init`` replaces by one that exits.

    Without ``default_too`` only a handler of Python's is put back: where there was none, Ray's ends the
    process in a way that still cleans up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if default_too or callable(before):
            _put_back(signal.SIGTERM, before)


def _put_back(number: int, handler: object) -> None:
    # None: it was set by C code and cannot be set again from here.
    signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
