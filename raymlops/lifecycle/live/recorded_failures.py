"""What an hourly task fails at, put on the record once, and again only where it is another failure or was over."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from raymlops.errors import RaymlopsError

if TYPE_CHECKING:
    from raymlops.state.store import State

MAX_WHY = 2000

_log = logging.getLogger(__name__)


class RecordedFailures:
    """The failures of one task that are not over, by model, and where it has several places, by place."""

    def __init__(self, state: State, *, actor: str | None = None) -> None:
        self._state = state
        self._actor = actor
        self._known: dict[tuple[str, str], str] = {}

    def put(self, name: str, why: str, *, place: str = "") -> None:
        """Record a failure, unless it is known."""
        if self._known.get((name, place)) == why:
            return
        self._known[name, place] = why
        try:
            self._state.record(action="controller.error", subject=name, why=why[:MAX_WHY], actor=self._actor)
        except RaymlopsError as error:
            _log.warning("the audit record lacks that: %s", error)

    def over(self, name: str, *, place: str = "") -> None:
        """Forget it, so that it is recorded when it comes again."""
        self._known.pop((name, place), None)
