"""Whether the client of a connection has left, for an application that waits for something else.

Owns how a disconnect is told, and how one is found that nothing told of: while a body is not read, its end is not
either.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

CLIENT = "raymlops.client"
"""Key of an ASGI scope for the ``Client``; to be removed before the scope is passed on."""
_ENDED = getattr(select, "POLLRDHUP", 0)
"""Linux alone tells the end of what a peer sends; elsewhere a reset is noticed, and an end once it is read."""


class Client:
    """The client of a connection, as far as an application cares: whether it has disconnected.

    ``look`` looks for a disconnect that was not noticed, as nothing is read of the client meanwhile.
    """

    __slots__ = ("_look", "_on_disconnect", "gone")

    def __init__(self, look: Callable[[], object] | None = None) -> None:
        self.gone = False
        self._look = look
        self._on_disconnect: Callable[[], object] | None = None

    def has_left(self) -> bool:
        """Return whether it has disconnected, also if that was not noticed yet."""
        if not self.gone and self._look is not None:
            self._look()
        return self.gone

    def watch(self, on_disconnect: Callable[[], object] | None) -> None:
        """Call a function when the client disconnects with a request unanswered; None stops that."""
        self._on_disconnect = on_disconnect

    def leave(self) -> None:
        """Record the disconnect."""
        self.gone = True
        if self._on_disconnect is not None:
            self._on_disconnect()


def has_ended(transport: asyncio.Transport) -> bool:
    """Return whether the peer has closed a connection, whatever of it is still to be read."""
    if transport.is_closing():
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), _ENDED)
    return bool(poll.poll(0))
