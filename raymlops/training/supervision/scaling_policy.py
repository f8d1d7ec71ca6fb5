"""The size of an elastic worker group: as many workers as fit between its limits, and more once room has lasted.

Pure: counts and a clock's seconds in, a number or a decision with its numbers out.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection

    from raymlops.errors import InsufficientResourcesError


class Room(Protocol):
    """Counts the workers that the cluster has room for; ``without`` names excluded nodes."""

    def count(self, *, without: Collection[str] = ()) -> float:
        """Return how many more workers could start now; infinite where a worker reserves nothing."""
        ...

    def may_grow(self, workers: int) -> bool:
        """Return whether an autoscaler may add nodes for so many workers."""
        ...

    def waiting(self, *, workers: Collection[str]) -> str:
        """Return which tasks workers on the nodes with these ids, one for each, leave no room for; empty if none."""
        ...

    def blocks(self, group_id: str) -> bool:
        """Return whether something may wait for the places of this placement group."""
        ...

    def error(self, workers: int, *, waited_s: float) -> InsufficientResourcesError:
        """Return the error after a wait in vain, which says what there is and who holds it."""
        ...


def choose(workers: tuple[int, int], *, room: float) -> int | None:
    """Return how many of (fewest, most) workers to start where there is room for ``room``; None when too few fit."""
    fewest, most = workers
    if room < fewest:
        return None
    return most if room >= most else int(room)


class Growth:
    """Decides when to grow.

    There must be room for more without a break for ``after_s``, and the current workers must have taken steps for as
    long: each resize costs seconds, which must pay off before the next.
    """

    def __init__(self, workers: tuple[int, int], *, after_s: float) -> None:
        self._most = workers[1]
        self._after_s = after_s
        self._stepping_since: float | None = None
        self._room_since: float | None = None

    def observe(self, *, workers: int, room: float, stepping: bool, now_s: float) -> int | None:
        """Return how many workers to grow to, with room for ``room`` more beside the current ones; None to stay.

        ``stepping`` says whether the current workers have taken a step yet.
        """
        if stepping and self._stepping_since is None:
            self._stepping_since = now_s
        if room < 1 or workers >= self._most:
            self._room_since = None
            return None
        if self._room_since is None:
            self._room_since = now_s
        settled_s = -inf if self._stepping_since is None else now_s - self._stepping_since
        if settled_s < self._after_s or now_s - self._room_since < self._after_s:
            return None
        return choose((1, self._most), room=workers + room)
