"""What a label or an answer says as a number: one of two classes, a whole number, any number, a probability. Pure."""

from __future__ import annotations

import math
from typing import Any

_YES, _NO = frozenset({"1", "true"}), frozenset({"0", "false"})


def binary(label: Any) -> int | None:
    """Return 1 or 0 for a label that is one of two classes: 1, true, "1", "true", and so on; None for another."""
    if isinstance(label, str):
        text = label.strip().lower()
        return 1 if text in _YES else 0 if text in _NO else None
    return int(label) if isinstance(label, bool | int | float) and label in (0, 1) else None


def whole(label: Any) -> int | None:
    """Return a whole number, also of a text; None for anything else."""
    number = None if isinstance(label, bool) else real(label)
    return int(number) if number is not None and number.is_integer() else None


def real(value: Any) -> float | None:
    """Return a finite number, also of a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def chance_of(value: Any) -> float | None:
    """Return a number as a probability, from 0 to 1; None for anything else."""
    number = real(value)
    return None if number is None else min(1.0, max(0.0, number))
