"""When a version that bakes is compared with the one before it on the same labelled requests, and what came of it.

A comparison reads and answers again all labelled requests since the promotion. So it is made where skill is lost, and
once for each newer window of labels.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from raymlops.lifecycle.loop.next_step import COMPARING
from raymlops.monitor.baked import Compared

if TYPE_CHECKING:
    from raymlops.lifecycle.quality.facts import QualityFacts
    from raymlops.state.loop import Retraining


def compared_of(one: Retraining) -> Compared | None:
    """Return the newest comparison of a retraining; None before the first."""
    stored = one.found.get(COMPARING)
    return None if stored is None else Compared.from_dict(stored)


def due_until(one: Retraining, known: QualityFacts) -> datetime | None:
    """Return the end of the newest window of labels, if both are to be compared by it now; else None.

    They are where skill is lost, since only then a version may be taken back for its answers.
    """
    until, verdict = known.until, known.verdict
    if one.stage != "baking" or known.version != one.version or until is None:
        return None
    if verdict is None or verdict.outcome != "worse":
        return None
    done = compared_of(one)
    return until if done is None or until > datetime.fromisoformat(done.until) else None
