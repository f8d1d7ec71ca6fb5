"""How wrong the labelled answers of a version were, from 0 to 1, for the decision on a rollout.

Owns what is compared with a label, and which rows of the log are read for it. A label is compared with what was
answered:

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
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from raymlops.bundle.place import root_of
from raymlops.errors import NotFoundError
from raymlops.lifecycle.lineup import champion_of
from raymlops.lifecycle.lossreader import LogLosses
from raymlops.predictions.counts import Losses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from raymlops.lifecycle.lossreader import Window
    from raymlops.predictions.labelled import Labels
    from raymlops.state.store import State

COLUMNS = ("ts", "model_version", "route", "fallback_from", "output")
MAX_LABEL_BYTES = 32 * 2**20
"""Of labels held at a time, about half a million with ids of 36 characters; they are sorted in five times that."""


class LabelLosses:
    """Read losses from the log of the models that are live. May take minutes: call it beside what is not to wait."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.max_label_bytes = MAX_LABEL_BYTES

    def __call__(self, name: str, windows: Sequence[Window], *, labelled: Callable[[], None]) -> LogLosses:
        """Return those in each window; none where there is no label, of which a look at their folder tells.

        Raises:
            StorageError: the log cannot be read.
        """
        from raymlops.predictions.files import Store
        from raymlops.predictions.labelled import load_labels
        from raymlops.predictions.partition import Faults

        none = LogLosses({window: {} for window in windows})
        champion = champion_of(self._state.deployments(name))
        if champion is None or not windows:
            return none
        root = root_of(champion.bundle.uri)  # its replicas write what every version beside it answers
        since = min(window.since for window in windows)
        labels = load_labels(Store(root), name, Faults(), since=since, max_bytes=self.max_label_bytes)
        if not len(labels.hashes):
            return none
        labelled()
        found = {window: self._read(root, name, window, labels) for window in windows}
        if labels.every == 1:
            return LogLosses(found)
        most = f"{self.max_label_bytes // 1024:,} KiB"
        return LogLosses(found, f"labels take more than {most}, so that those of one in {labels.every:,} rows are read")

    def _read(self, root: str, name: str, window: Window, labels: Labels) -> dict[int | None, Losses]:
        from raymlops.predictions.read import read_predictions

        since, until = window
        if until is not None and until <= since:
            return {}
        try:
            found = read_predictions(
                root, name, since=since, until=until, columns=COLUMNS, labels=labels, only_labelled=True
            )
        except NotFoundError:
            return {}  # nothing was logged yet
        values: dict[int | None, list[float]] = defaultdict(list)
        for batch in found:
            for version, loss in _losses(batch.to_pylist()):
                values[version].append(loss)
        return {version: Losses.of(losses) for version, losses in values.items()}


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


def _losses(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, float]]:
    for row in rows:
        if row["route"] not in {"champion", "canary"} or row["fallback_from"] is not None:
            continue
        loss = loss_of(row["output"], json.loads(row["label"]))
        if loss is not None:
            yield row["model_version"], loss


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
