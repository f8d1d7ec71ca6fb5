"""Bounds on the connections of a process, and on what their clients have not read: beyond them, the oldest one ends.

Owns these numbers and that order. A connection waits for its client until a request is complete, and again once it is
answered: it is idle, or its client sends slowly, or does not read. Those with a request to answer are never ended for a
new one. The one that has waited longest ends, of the address that has most: who opens many ends only its own. For one
event loop.
"""

from __future__ import annotations

import resource
from collections import defaultdict
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

UNREAD_BYTES = 256 * 1024 * 1024


class HasTransport(Protocol):
    """A connection; ``client`` is the address and port of its other end."""

    transport: asyncio.Transport
    client: tuple[str, int] | None


def most_connections(files: int) -> int:
    """Return how many connections a process may hold that may open so many files: half of them, at most 16,384."""
    return 16_384 if files == resource.RLIM_INFINITY else max(64, min(16_384, files // 2))


class OpenConnections:
    """The connections of a process, which of them wait for their clients, and what these have not read.

    ``most`` is how many there may be, ``most_unread`` how many bytes of responses may be buffered for them together.
    """

    def __init__(self, most: int | None = None, *, most_unread: int = UNREAD_BYTES) -> None:
        self.most = most_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) if most is None else most
        self.most_unread = most_unread
        self._all: set[HasTransport] = set()
        self._waiting: defaultdict[str, dict[HasTransport, None]] = defaultdict(dict)
        self._unread: dict[HasTransport, int] = {}
        self._unread_bytes = 0

    def open(self, connection: HasTransport) -> bool:
        """Add a connection, which waits; return whether there is room for it, possibly in place of another."""
        if len(self._all) >= self.most:
            if not self._waiting:
                return False
            most = max(self._waiting.values(), key=len)
            self._end(next(iter(most)))
        self._all.add(connection)
        self._waiting[_address(connection)][connection] = None
        return True

    def close(self, connection: HasTransport) -> None:
        """Remove a connection that has ended."""
        self._all.discard(connection)
        self.works(connection)
        self.unread(connection, 0)

    def waits(self, connection: HasTransport) -> None:
        """Record that a connection waits for its client from now on."""
        if connection in self._all:
            self.works(connection)
            self._waiting[_address(connection)][connection] = None

    def works(self, connection: HasTransport) -> None:
        """Record that a connection has a request to answer."""
        address = _address(connection)
        if address in self._waiting:
            self._waiting[address].pop(connection, None)
            if not self._waiting[address]:
                del self._waiting[address]

    def unread(self, connection: HasTransport, size: int) -> None:
        """Record how many bytes a client has to read; those that have longest had some end where all have too many."""
        self._unread_bytes += size - self._unread.pop(connection, 0)
        if size:
            self._unread[connection] = size
        while self._unread_bytes > self.most_unread and len(self._unread) > 1:
            self._end(next(iter(self._unread)))

    def _end(self, connection: HasTransport) -> None:
        self.close(connection)
        connection.transport.abort()


def _address(connection: HasTransport) -> str:
    return connection.client[0] if connection.client else ""
