"""Ctrl-C and SIGTERM put off for a moment in which they would leave something open that nobody knows of.

Owns the two handlers for that moment, and puts them back. Knows nothing of what is protected.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Deliver at the end of the block what came during it, to the handlers of before.

    A signal without a handler in Python is left alone, and so are all outside the main thread, which gets none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def hold(number: int, _frame: Any) -> None:
        came.append(number)

    before = {
        number: handler for number in (signal.SIGINT, signal.SIGTERM) if callable(handler := signal.getsignal(number))
    }
    try:
        for number in before:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
