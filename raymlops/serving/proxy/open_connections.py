"""Bound on the connections of a process: when there are too many, the one that has waited for its client longest ends.

Owns that number and that order. A connection waits for its client until a request is complete, and again once it is
answered: it is idle, or its client sends slowly, or does not read. Those with a request to answer are never ended for a
new one. For one event loop.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio


class HasTransport(Protocol):
    """A connection."""

    transport: asyncio.Transport


def most_connections(files: int) -> int:
    """Return how many connections a process may hold that may open so many files: half of them, at most 16,384."""
    return 16_384 if files == resource.RLIM_INFINITY else max(64, min(16_384, files // 2))


class OpenConnections:
    """The connections of a process, and which of them wait for their clients."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) if most is None else most
        self._all: set[HasTransport] = set()
        self._waiting: dict[HasTransport, None] = {}

    def open(self, connection: HasTransport) -> bool:
        """Add a connection, which waits; return whether there is room for it, possibly in place of another."""
        if len(self._all) >= self.most:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                return False
            self.close(oldest)
            oldest.transport.abort()
        self._all.add(connection)
        self._waiting[connection] = None
        return True

    def close(self, connection: HasTransport) -> None:
        """Remove a connection that has ended."""
        self._all.discard(connection)
        self._waiting.pop(connection, None)

    def waits(self, connection: HasTransport) -> None:
        """Record that a connection waits for its client from now on."""
        if connection in self._all:
            self._waiting.pop(connection, None)
            self._waiting[connection] = None

    def works(self, connection: HasTransport) -> None:
        """Record that a connection has a request to answer."""
        self._waiting.pop(connection, None)
