"""How long a sweep waits for its study's database.

Owns the limit, and that the progress display says when the database is lost and found again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.errors import UnreachableError

UNREACHABLE_S = 300.0
"""How long the study's database may be unreachable before the sweep fails; its trials keep running."""


class Outage:
    """Whether the study's database does not answer, and since when."""

    def __init__(self, *, notify: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._notify = notify
        self._clock = clock
        self._since_s: float | None = None

    def no_answer(self, error: UnreachableError) -> None:
        """Record that the database does not answer; raise the error once that takes too long."""
        now = self._clock()
        if self._since_s is None:
            self._since_s = now
            self._notify(f"{error.message}; no trial is drawn until it does")
        elif now - self._since_s > UNREACHABLE_S:
            raise error

    def answered(self) -> None:
        """Record that the database answers."""
        if self._since_s is not None:
            self._since_s = None
            self._notify("the study's database answers again")
