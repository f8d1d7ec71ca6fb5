"""Decoded row groups, the latest used ones, within a number of bytes.

Owns what is kept and what goes. Knows nothing of files or recipes. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")


class GroupCache(Generic[Value]):
    """Keeps values by number. The one that was asked for last is kept whatever its size."""

    def __init__(self, max_bytes: int, *, size_of: Callable[[Value], int]) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        """What the kept values take now."""
        self.loads = 0
        """How often a value was not there."""
        self._size_of = size_of
        self._kept: OrderedDict[int, tuple[Value, int]] = OrderedDict()

    def get(self, number: int, load: Callable[[], Value], *, expected_bytes: int = 0) -> Value:
        """Return a value that is kept, or the one that ``load`` returns; room for it is made before it is loaded."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number][0]
        self._shrink(self.max_bytes - expected_bytes, leave=0)
        value = load()
        self.loads += 1
        size = self._size_of(value)
        self._kept[number] = (value, size)
        self.bytes += size
        self._shrink(self.max_bytes, leave=1)
        return value

    def clear(self) -> None:
        """Let go of everything."""
        self._shrink(-1, leave=0)

    def _shrink(self, max_bytes: int, *, leave: int) -> None:
        while self.bytes > max_bytes and len(self._kept) > leave:
            _, (_, size) = self._kept.popitem(last=False)
            self.bytes -= size
