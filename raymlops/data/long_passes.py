"""Long passes over a split's rows: signs of life for whoever watches the process, and how far they are in its log.

Knows nothing of what a pass does.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from raymlops.display import LOG_EVERY_S, Throttle

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger(__name__)


class Rows(Protocol):
    """The part of a split that a pass needs."""

    name: str
    rows: int
    on_progress: Callable[[], None]


def begin_pass(doing: str, split: Rows, *, clock: Callable[[], float] = time.monotonic) -> Callable[[int], None]:
    """Return what a pass over a split's rows calls with how many are done: every ten seconds that is logged."""
    throttle = Throttle(LOG_EVERY_S, clock=clock)
    throttle.due()

    def done(rows: int) -> None:
        split.on_progress()
        if throttle.due():
            _LOG.warning("%s the %s split: %s of %s rows", doing, split.name, f"{rows:,}", f"{split.rows:,}")

    return done
