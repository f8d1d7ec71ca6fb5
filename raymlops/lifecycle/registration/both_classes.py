"""Whether the test rows of a version show both classes of its label: without one of them nothing is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raymlops.records import GateCheck

if TYPE_CHECKING:
    from raymlops.bundle.load import LoadedModel
    from raymlops.data.split import SplitData

NAME = "tested on both classes"


def both_classes(candidate: LoadedModel, test: SplitData) -> list[GateCheck]:
    """Return a check that failed where all labels of a probability's event are the same one; none otherwise.

    Of two models for an event that no test row has, the one that never expects it is better, whatever it is worth.

    Raises:
        StorageError: the data cannot be read.
    """
    rule, label = candidate.loss, candidate.recipe.label
    if rule is None or rule.kind != "probability" or label is None:
        return []
    seen: set[int] = set()
    rows = 0
    for columns in test.chunks():
        if label not in columns:
            return []
        values = np.asarray(columns[label]).tolist()
        rows += len(values)
        seen |= {truth for truth in map(rule.class_of, set(values)) if isinstance(truth, int)}
        if len(seen) > 1 or not seen:  # labels that are of no class are not its matter
            return []
    only = "positive" if 1 in seen else "negative"
    detail = f"all {rows:,} test rows are {only}: take more of them, until both classes are there"
    return [GateCheck(NAME, passed=False, got=1.0, allowed="2 classes", detail=detail)]
