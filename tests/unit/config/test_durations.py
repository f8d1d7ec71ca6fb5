"""Lengths of time as they are written on a command line."""

from __future__ import annotations

import pytest

from raymlops.config.durations import parse_duration
from raymlops.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45.0), ("10m", 600.0), ("24h", 86_400.0), ("90d", 7_776_000.0), ("1.5h", 5_400.0), (" 0s ", 0.0)],
)
def test_each_unit_is_read(text: str, seconds: float) -> None:
    """A number and one of four units are so many seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "m", "-5m", "1e9s", "infs", "nan", "10 m", "10M", "1h30m", "٣m", "9" * 40 + "d"]
)
def test_anything_else_is_refused_with_the_units(text: str) -> None:
    """What is no number and unit is quoted, cut where it is long, with what is allowed."""
    with pytest.raises(UsageError, match="s, m, h or d") as caught:
        parse_duration(text)
    assert len(caught.value.message) < 150
