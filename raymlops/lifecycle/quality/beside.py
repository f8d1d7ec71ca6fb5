"""A shadow beside the champion on the same labelled requests: is it worse, better, or no worse?

Owns which requests these are: those that both answered since the shadow is there. The comparison may be looked at every
day (``monitor.skill.verdict.Paired``). A canary's requests are its own, which its rollout judges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from raymlops.monitor.skill.expected import label_shares
from raymlops.monitor.skill.reference import base_loss
from raymlops.monitor.skill.scored import largest_loss
from raymlops.monitor.skill.verdict import Comparison, Paired
from raymlops.predictions.labelled_rows import admit, first_answers
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from raymlops.lifecycle.quality.model import QualityModel
    from raymlops.predictions.labelled import Labels
    from raymlops.predictions.labelled_rows import Rows
    from raymlops.state.store import Deployment

_AT_ONCE = timedelta(days=1)


@dataclass(frozen=True)
class Beside(Record):
    """How the answers of a shadow compare with the champion's."""

    version: int
    outcome: Comparison
    reason: str
    rows: int
    """Labelled rows that both answered."""

    def text(self) -> str:
        """Return it as a line."""
        return f"beside it version {self.version}, {self.rows:,} labelled rows of both: {self.outcome}: {self.reason}"


def beside(
    model: QualityModel, shadow: Deployment, labels: Labels, *, now: datetime, hurry: Callable[[], bool]
) -> Beside | None:
    """Compare a shadow with the champion, by a day at a time, until ``hurry`` says that the time is up.

    None where no labelled row was answered by both, or the metric is no mean of losses.

    Raises:
        StorageError: the log cannot be read.
        RaymlopsError: the recipe's ``loss_of`` cannot be asked.
    """
    if model.section.metric == "auc":
        return None
    start, rows, found = max(model.since, shadow.created_at), 0, None
    while start < now and not hurry():
        stop = min(start + _AT_ONCE, now)
        both = _of_both(model, shadow.version, labels, start=start, stop=stop)
        start = stop
        if both is None:
            continue
        rows += len(both[0])
        day = _paired(model, *both)
        found = day if found is None else found + day
    if found is None:
        return None
    outcome, reason = found.compare(margin=model.section.margin)
    return Beside(shadow.version, outcome, reason, rows)


def _of_both(
    model: QualityModel, version: int, labels: Labels, *, start: datetime, stop: datetime
) -> tuple[Rows, Rows] | None:
    ours = model.reader
    theirs = replace(ours, route="shadow")
    times = {"since": start, "until": stop}
    found = [
        reader.window(model.root, model.name, labels, version=of, **times)
        for reader, of in ((theirs, version), (ours, model.version))
    ]
    if found[0] is None or found[1] is None or not len(found[0].labelled) or not len(found[1].labelled):
        return None
    shadow, champion = (rows.where(first_answers(rows)) for rows in (found[0].labelled, found[1].labelled))
    _, at, of = np.intersect1d(champion["places"], shadow["places"], return_indices=True)
    champion, shadow = champion.where(at), shadow.where(of)
    known = model.known.metrics[model.section.metric].expectation.known
    seen = np.append(known, False)[champion["codes"]]
    admitted = admit(champion, most=model.section.max_caller_share, seen=seen)
    counts = admitted.rows & (not admitted.refused)
    return (champion.where(counts), shadow.where(counts)) if counts.any() else None


def _paired(model: QualityModel, champion: Rows, shadow: Rows) -> Paired:
    metric, rule = model.known.metrics[model.section.metric], model.rule
    weights = champion["weights"]
    shares = label_shares(champion["codes"], classes=model.known.classes.count, weights=weights)
    numbers = champion["numbers"] if rule.kind == "number" else None
    frozen = model.section.reference == "frozen"
    reference = base_loss(rule, model.section.metric, metric, shares, frozen=frozen, numbers=numbers, weights=weights)
    losses = champion["losses"], shadow["losses"]
    most = largest_loss(model.section.metric)
    return Paired.of(*losses, clusters=champion["requests"], reference=reference, weights=weights, most=most)
