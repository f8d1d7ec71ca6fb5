"""Durations on a command line, ``45s``, ``10m``, ``24h``, ``90d``, and times by ISO 8601, kept in UTC. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator

from raymlops.errors import UsageError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_FORM = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd])")


def parse_duration(text: str) -> float:
    """Return a duration in seconds, such as 600.0 for ``10m``; never negative, never infinite.

    Raises:
        UsageError: not a number followed by one of the units s, m, h and d. A number alone is rejected as ambiguous.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"{text[:40]!r} is not a duration; expected a number and a unit: s, m, h or d",
            hint="For example 45s, 10m, 24h or 90d.",
        )
    return float(found[1]) * _SECONDS[found[2]]


def read_moment(text: str) -> datetime:
    """Return a time in UTC; one without a zone is in UTC.

    Raises:
        ValueError: it is no day or time by ISO 8601.
    """
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        msg = f"got {text!r}; a day or a time by ISO 8601, such as '2026-01-31' or '2026-01-31T12:00+01:00'"
        raise ValueError(msg) from None
    return (read if read.tzinfo is not None else read.replace(tzinfo=UTC)).astimezone(UTC)


Moment = Annotated[str, AfterValidator(lambda text: read_moment(text).isoformat())]
