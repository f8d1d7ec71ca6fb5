"""How wrong the labelled answers of a version were, from 0 to 1, for the decision on a rollout.

Owns what is compared with a label, and how often the log is read for it. A label is compared with what was answered:

======================================= ==========================================================
outputs and label                        loss
======================================= ==========================================================
one text                                 0 where it is the label, else 1
one number, label true or false or 0, 1  Brier score: the squared distance of the probability
several numbers, label a name or index   half the squared distance to that class alone (Brier)
one number, any number as label          absolute distance, at most 1
======================================= ==========================================================

Anything else says nothing of a version, and is left out. So are copies, pinned requests and those where the champion
stood in: they fell to a version for another reason than chance.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

from raymlops.bundle.place import root_of
from raymlops.errors import NotFoundError
from raymlops.predictions.counts import Losses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from raymlops.state.store import State

READ_EVERY_S = 30.0
"""Labels come minutes to days late; reading the log for them each second would be for nothing."""
COLUMNS = ("ts", "route", "fallback_from", "output")


class LabelLosses:
    """Read losses from the log of the models that are live, at most twice a minute a version and window."""

    def __init__(self, state: State, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = state
        self._clock = clock
        self._known: dict[tuple[str, int, datetime, datetime | None], tuple[float, Losses]] = {}

    def __call__(self, name: str, version: int, since: datetime, until: datetime | None) -> Losses:
        """Return those of requests that arrived from ``since`` on, before ``until``; none where there is no log."""
        key = (name, version, since, until)
        at, losses = self._known.get(key, (float("-inf"), Losses()))
        if self._clock() - at < READ_EVERY_S:
            return losses
        losses = self._read(name, version, since, until)
        self._known = {known: entry for known, entry in self._known.items() if known[0] != name or known[2] >= since}
        self._known[key] = (self._clock(), losses)
        return losses

    def _read(self, name: str, version: int, since: datetime, until: datetime | None) -> Losses:
        from raymlops.predictions.read import read_predictions

        bundles = [item.bundle.uri for item in self._state.deployments(name) if item.version == version]
        if not bundles:
            return Losses()
        try:
            found = read_predictions(
                root_of(bundles[0]), name, since=since, until=until, version=version, columns=COLUMNS
            )
        except NotFoundError:
            return Losses()  # nothing was logged yet, or the log is switched off
        return Losses.of(_losses(batch.to_pylist() for batch in found))


def loss_of(output: Mapping[str, Any], label: Any) -> float | None:
    """Return how wrong an answer was, None where the two cannot be compared."""
    values = list(output.values())
    if len(values) == 1 and isinstance(values[0], str):
        return float(values[0] != label) if isinstance(label, str) else None
    if not values or not all(_is_number(value) for value in values):
        return None
    if len(values) == 1 and _is_number(label):
        distance = abs(float(values[0]) - float(label))
        return min(1.0, distance**2 if label in (0, 1) else distance)
    names = list(output)
    if isinstance(label, str) and label in names:
        chosen = names.index(label)
    elif isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(values) > 1:
        chosen = label
    else:
        return None
    return min(1.0, 0.5 * math.fsum((value - (index == chosen)) ** 2 for index, value in enumerate(values)))


def _losses(batches: Iterator[list[dict[str, Any]]]) -> Iterator[float]:
    for rows in batches:
        for row in rows:
            if row["label"] is None or row["route"] not in {"champion", "canary"} or row["fallback_from"] is not None:
                continue
            loss = loss_of(row["output"], json.loads(row["label"]))
            if loss is not None:
                yield loss


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
