"""An hourly task for model after model: within a time, and whatever fails for one of them.

Owns the order, and what is recorded of a failure. A call continues with the model at which the one before ran out of
time, so that the last ones have their turn too.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from raymlops.errors import NotFoundError
from raymlops.lifecycle.live.recorded_failures import RecordedFailures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from raymlops.state.store import State

    Hurry = Callable[[], bool]
    """Returns whether the time is up."""

TURN_S = 600.0
"""How long a call may take, so that other tasks do not wait for it."""

_log = logging.getLogger(__name__)


class EachModel:
    """Call a task for each model."""

    def __init__(self, state: State, *, undone: str, actor: str, clock: Callable[[], float] = time.monotonic) -> None:
        """``undone`` says what a failure leaves undone, as ``its traffic was not judged``."""
        self._undone = undone
        self._clock = clock
        self._failures = RecordedFailures(state, actor=actor)
        self._next = ""
        """The model at which the last call ran out of time."""

    def __call__(self, names: Iterable[str], task: Callable[[str, Hurry], bool]) -> None:
        """Call the task for each of these models, until it returns False or the time is up.

        What it raises is recorded, and the next model has its turn; a NotFoundError says that there is nothing to do.
        """
        ends = self._clock() + TURN_S

        def hurry() -> bool:
            return self._clock() >= ends

        for name in sorted(names, key=lambda name: (name < self._next, name)):
            self._next = name
            if hurry():
                return
            try:
                if not task(name, hurry):
                    return
                self._failures.over(name)
            except NotFoundError as error:
                _log.info("%s: %s: %s", name, self._undone, error)
            except Exception as error:
                _log.warning("%s: %s", name, self._undone, exc_info=error)
                self._failures.put(name, f"{self._undone}: {type(error).__name__}: {error}")
        self._next = ""
