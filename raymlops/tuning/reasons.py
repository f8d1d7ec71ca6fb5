"""Why something failed, in one line. Pure."""

from __future__ import annotations

from raymlops.errors import RaymlopsError


def describe(error: BaseException) -> str:
    """Return the error's class and the first line of its message."""
    text = error.message if isinstance(error, RaymlopsError) else str(error)
    lines = text.strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
