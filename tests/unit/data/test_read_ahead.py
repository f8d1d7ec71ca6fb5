"""Row groups are fetched in a thread before they are asked for, each once, and no more than a window of them."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from raymlops.data.parquet.read_ahead import ReadAhead
from raymlops.errors import StorageError


class Rows(str):
    """A table of ten bytes."""

    __slots__ = ()
    nbytes = 10


class Reader:
    """Notes what is read, and by whom; group 7 cannot be."""

    def __init__(self) -> None:
        self.read_: list[int] = []
        self.threads: set[str] = set()

    def place(self, group: int) -> str:
        return f"group {group}"

    def read(self, group: int, columns: Any) -> tuple[Any, list[str]]:
        self.read_.append(group)
        self.threads.add(threading.current_thread().name)
        if group == 7:
            raise StorageError("group 7 is damaged")
        return Rows(f"{group}:{','.join(columns)}"), list(columns)


def drain(ahead: ReadAhead) -> None:
    """Wait until all is read that may be."""
    for future in list(ahead._ahead.values()):
        future.exception()


def test_a_window_is_fetched_ahead() -> None:
    """Two groups beyond the last one that was asked for; a change of order forgets them."""
    reader = Reader()
    ahead = ReadAhead(reader, max_bytes=100)  # type: ignore[arg-type]
    assert ahead.read(3, ["x"]) == ("3:x", ["x"])
    assert reader.threads == {"MainThread"}
    ahead.follow([4, 2, 9, 0, 5], most=2)
    assert ahead.read(4, ["x"])[0] == "4:x"
    drain(ahead)
    assert reader.read_ == [3, 4, 2, 9]
    assert [ahead.read(group, ["x"])[0] for group in (2, 9, 0, 5)] == ["2:x", "9:x", "0:x", "5:x"]
    assert reader.read_ == [3, 4, 2, 9, 0, 5]
    ahead.follow([5, 4], most=2)
    assert ahead.read(4, ["y"])[0] == "4:y"
    assert ahead.place(4) == "group 4"


def test_an_error_is_raised_where_its_group_is_asked_for() -> None:
    """Not where it was met, and not at all if the group is never needed."""
    ahead = ReadAhead(Reader(), max_bytes=100)  # type: ignore[arg-type]
    ahead.follow([1, 7, 2], most=2)
    assert ahead.read(1, ["x"])[0] == "1:x"
    assert ahead.read(2, ["x"])[0] == "2:x"
    ahead.follow([1, 7, 2], most=2)
    ahead.read(1, ["x"])
    with pytest.raises(StorageError, match="group 7 is damaged"):
        ahead.read(7, ["x"])
    assert ahead.read(2, ["x"])[0] == "2:x"


@pytest.mark.parametrize(("max_bytes", "ahead"), [(35, 3), (20, 2), (5, 1)])
def test_memory_bounds_what_is_read_ahead(max_bytes: int, ahead: int) -> None:
    """By the size of the largest group so far; one at least."""
    reader = Reader()
    made = ReadAhead(reader, max_bytes=max_bytes)  # type: ignore[arg-type]
    made.read(99, ["x"])
    made.follow(range(100, 120), most=10)
    made.read(100, ["x"])
    drain(made)
    assert reader.read_ == list(range(99, 101 + ahead))


def test_two_threads_never_read_at_once() -> None:
    """A group that another order asked for may still be read while one outside of the order is asked for."""
    reader = Reader()
    made = ReadAhead(reader, max_bytes=100)  # type: ignore[arg-type]
    made.follow([1, 2], most=1)
    made.read(1, ["x"])
    made.follow([], most=1)
    made.read(9, ["x"])
    assert len(reader.threads) == 1
