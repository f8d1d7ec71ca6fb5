"""What the quality of the newest answers probably is, before their labels come, by what they say of themselves.

It is shown and warns. Nothing is decided by it, and nothing of it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from raymlops.monitor.skill.estimated import expected_losses, warning
from raymlops.predictions.labelled import settle
from raymlops.records import Record

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.lifecycle.quality.due import Span
    from raymlops.lifecycle.quality.model import QualityModel


@dataclass(frozen=True)
class Estimated(Record):
    """The loss of a window, by the calibrated confidence of its answers."""

    start: datetime
    stop: datetime
    rows: int
    loss: float
    before: float
    """That of the test rows, estimated alike."""
    low: float
    """Between what the loss is, by the error of such estimates on the test rows."""
    high: float
    warning: str = ""

    def text(self) -> str:
        """Return it as a line."""
        span = f"{self.start:%Y-%m-%d %H:%M} to {self.stop:%Y-%m-%d %H:%M} UTC, {self.rows:,} rows"
        told = f"loss {self.loss:.4g} ({self.low:.4g} to {self.high:.4g}), {self.before:.4g} of its test rows"
        return f"before labels, {span}, estimated by confidence: {told}" + (f"; {self.warning}" if self.warning else "")


def estimated(model: QualityModel, span: Span) -> Estimated | None:
    """Return the estimate of a window; None where answers do not say how sure they are, or there are none.

    Raises:
        StorageError: the log cannot be read.
    """
    known = model.known.calibrated
    if known is None:
        return None
    reader = replace(model.reader, believes=True)
    since = max(span.start, model.since)
    found = reader.window(model.root, model.name, settle(None), version=model.version, since=since, until=span.stop)
    if found is None:
        return None
    rows = found.sample.where(np.isfinite(found.sample["confidence"]))
    if not len(rows):
        return None
    chances = known.calibration.of_confidence(rows["confidence"])
    losses = expected_losses(chances, if_true=rows["if_true"], if_false=rows["if_false"])
    loss = float(np.average(losses, weights=rows["weights"]))
    low, high = (float(end) for end in known.error.interval())
    warned = warning(loss, before=known.loss, error=known.error, margin=model.section.margin)
    # The error is that of the estimate less what came true.
    return Estimated(span.start, span.stop, found.rows, loss, known.loss, loss - high, loss - low, warned)
