"""Row groups that a thread fetches and decodes before they are asked for, in the order of an epoch.

Arrow lets go of the interpreter while it does so. Nothing of the recipe runs in the thread: what ``encode`` draws would
come from the training's generators.

Owns the thread and what it has read. Knows nothing of rows.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.data.parquet.files import GroupReader

    Key = tuple[int, tuple[str, ...]]


class ReadAhead:
    """Reads row groups as ``GroupReader`` does, up to ``most`` of them ahead of the last one that was asked for.

    Fewer where they take more than ``max_bytes`` together, if they are as large as the largest one so far, but one.
    """

    def __init__(self, reader: GroupReader, *, max_bytes: int) -> None:
        self._reader = reader
        self._max_bytes = max_bytes
        self._largest_bytes = 0
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: dict[Key, Future[Any]] = {}
        self._order: list[int] = []
        self._places: dict[int, int] = {}
        self._most = 0

    def follow(self, order: Sequence[int], *, most: int) -> None:
        """Read in this order from now on."""
        self._order, self._most = list(order), most
        self._places = {group: place for place, group in enumerate(self._order)}
        self._forget(set())

    def place(self, group: int) -> str:
        """Return a row group's file and number for error messages."""
        return self._reader.place(group)

    def read(self, group: int, columns: Sequence[str]) -> tuple[Any, list[str]]:
        """Return a row group as ``GroupReader.read`` does."""
        key, place = (group, tuple(columns)), self._places.get(group)
        found = self._ahead.pop(key, None)
        if place is None and self._thread is None:
            return self._read(key)
        found = found or self._submit(key)
        if place is not None:
            most = min(self._most, max(1, self._max_bytes // self._largest_bytes)) if self._largest_bytes else 1
            following = [(each, key[1]) for each in self._order[place + 1 : place + 1 + most]]
            self._forget(set(following))
            self._ahead |= {each: self._submit(each) for each in following if each not in self._ahead}
        table: tuple[Any, list[str]] = found.result()
        return table

    def _read(self, key: Key) -> tuple[Any, list[str]]:
        table, there = self._reader.read(*key)
        self._largest_bytes = max(self._largest_bytes, table.nbytes)
        return table, there

    def _submit(self, key: Key) -> Future[Any]:
        # All reads are in one thread: two of one file would move its position.
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "raymlops-read-ahead")
        return self._thread.submit(self._read, key)

    def _forget(self, wanted: set[Key]) -> None:
        for key in self._ahead.keys() - wanted:
            self._ahead.pop(key).cancel()
