"""What is set for the whole process while any of its threads needs it."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


class SharedContext:
    """A context that the first of its users enters and the last one leaves, in whichever order they come and go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._stack = ExitStack()

    @contextmanager
    def entered(self, make: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """Enter it for the block."""
        with self._lock:
            if self._users == 0:
                self._stack.enter_context(make())
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._stack.pop_all().close()
