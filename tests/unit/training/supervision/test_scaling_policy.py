"""An elastic run starts as many workers as fit, and grows when room has lasted and the last change has settled."""

from __future__ import annotations

from math import inf

import pytest

from raymlops.training.supervision.scaling_policy import Growth, choose


@pytest.mark.parametrize(
    ("workers", "room", "expected"),
    [
        ((1, 4), 0, None),
        ((2, 4), 1, None),
        ((2, 4), 2, 2),
        ((2, 4), 3, 3),
        ((2, 4), 9, 4),
        ((3, 3), 3, 3),
        ((3, 3), 2, None),
        ((1, 4), inf, 4),
    ],
)
def test_as_many_workers_as_fit_between_the_limits(workers: tuple[int, int], room: float, expected: int | None) -> None:
    """A fixed number is a pair of equal limits; a worker that reserves nothing leaves infinite room."""
    assert choose(workers, room=room) == expected


def look(growth: Growth, now_s: float, *, workers: int = 1, room: float = 1, stepping: bool = True) -> int | None:
    return growth.observe(workers=workers, room=room, stepping=stepping, now_s=now_s)


def test_room_that_lasts_is_used() -> None:
    """Room for one more from second 100 on; with ten seconds to last, the decision falls at 110 and says so."""
    growth = Growth((1, 3), after_s=10)
    assert look(growth, 80, room=0) is None
    assert look(growth, 100) is None
    assert look(growth, 109) is None
    assert look(growth, 110) == 2


def test_room_with_a_break_starts_again() -> None:
    """Room that others take in between has not lasted."""
    growth = Growth((1, 3), after_s=10)
    assert look(growth, 0) is None
    assert look(growth, 8, room=0) is None
    assert look(growth, 9) is None
    assert look(growth, 18) is None
    assert look(growth, 19) == 2


def test_a_fresh_resize_settles_first() -> None:
    """Workers that have only just made their first step are not replaced, however long there has been room."""
    growth = Growth((1, 3), after_s=10)
    for now_s in range(30):
        assert look(growth, now_s, stepping=False) is None
    assert look(growth, 30) is None
    assert look(growth, 39) is None
    assert look(growth, 40) is not None


def test_never_beyond_the_most() -> None:
    """Room for nine more makes three at most; at three there is nothing to decide."""
    growth = Growth((1, 3), after_s=0)
    assert look(growth, 0, room=9) == 3
    assert look(growth, 1, workers=3, room=9) is None
