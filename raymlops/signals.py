"""SIGINT and SIGTERM: moments that they may not cut short, and handlers that Ray replaces.

Python runs handlers in the main thread alone, so that in another one there is nothing to hold.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let a block finish that would otherwise leave something open: processes, a run, half-closed books.

    One that came during the block is delivered after it, unless an exception is on its way out already: then
    the first one has done what the second asks for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _frame: held.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            _put_back(number, handler)
        if held and sys.exception() is None:
            signal.raise_signal(held[0])


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
