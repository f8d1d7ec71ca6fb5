"""Times in a configuration: by ISO 8601, kept in UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator


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
