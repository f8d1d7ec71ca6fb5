"""Which labels count for a verdict, and how much one key may say. Pure: decides row by row, and says what it left out.

A label is left out where it contradicts another one for its row, came before its answer, or is of a class that the
reference rows have none of. Where much is left out there is no verdict: what remains is a choice of somebody's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raymlops.display import some_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.monitor.skill.clusters import Floats

SKEW_S = 600.0
"""By which the clock of a label's writer may be behind that of its answer's: as the prediction log allows."""
MOST_LEFT_OUT = 0.05
"""Of the labelled rows."""
LEAST_KEPT = 0.25
"""Of the labels' weight, after one key was bounded: less of it is a window that one key has flooded."""


@dataclass(frozen=True)
class Admitted:
    """The labels that count.

    Attributes:
        rows: Which rows of the window they are, of shape (rows,).
        left_out: How many rows were left out, by reason; a row has its first reason alone.
        refused: Why there is no verdict; empty where there may be one.
    """

    rows: npt.NDArray[np.bool_]
    left_out: Mapping[str, int]
    refused: str = ""

    @property
    def note(self) -> str:
        """Say what was left out; empty where nothing was."""
        told = [f"{count:,} labels {reason}" for reason, count in self.left_out.items() if count]
        return f"left out: {some_of(told, 4)}" if told else ""


def admit(
    codes: Any, *, known: Any, asked: Any, received: Any, contradicted: Any, most: float = MOST_LEFT_OUT
) -> Admitted:
    """Decide which of the labelled rows count.

    Args:
        codes: The number of each row's label from 0, or -1 for one that is none of the classes.
        known: Which classes the reference has rows of, (classes,).
        asked: When each row was answered, seconds.
        received: When its first label came.
        contradicted: Whether labels contradict each other, and none is a correction.
        most: The share of rows that may be left out before there is no verdict.
    """
    number, seen = np.asarray(codes, dtype=np.int64), np.append(np.asarray(known, dtype=np.bool_), False)
    number = np.where((number < 0) | (number >= len(seen)), -1, number)  # the last one of ``seen``
    reasons = {
        "contradict each other": np.asarray(contradicted, dtype=np.bool_),
        "came before their answer": np.asarray(received) < np.asarray(asked) - SKEW_S,
        "are of another kind, or of a class that the reference has no row of": ~seen[number],
    }
    kept, left_out = np.ones(len(number), dtype=np.bool_), {}
    for reason, found in reasons.items():
        left_out[reason] = int((found & kept).sum())
        kept &= ~found
    out, admitted = len(kept) - int(kept.sum()), Admitted(kept, left_out)
    if out <= most * len(kept):
        return admitted
    said = f"{out / len(kept):.0%} of the labels do not count, at most {most:.0%} may: {admitted.note}"
    return replace(admitted, refused=said)


def contradictions(rows: Any, codes: Any) -> npt.NDArray[np.bool_]:
    """Return for each of several labels whether another one of its row says something else."""
    _, place = np.unique(np.asarray(rows), return_inverse=True)
    number = np.asarray(codes, dtype=np.int64)
    low, high = np.full(len(number), np.iinfo(np.int64).max), np.full(len(number), np.iinfo(np.int64).min)
    np.minimum.at(low, place, number)
    np.maximum.at(high, place, number)
    return np.asarray((low < high)[place])


def bound_keys(keys: Any, *, most: float, weights: Any = None) -> tuple[Floats, str]:
    """Return weights by which no key gives more than ``most`` of the labels, and why there is no verdict, or nothing.

    Those who send none, with an empty name, are as one key. The largest keys are brought down to one level, and the
    others keep their weights. Where that leaves less than a quarter of the weight, or there are too few keys for any to
    stay below ``most``, there is no verdict.
    """
    names, place = np.unique(np.asarray(keys), return_inverse=True)
    w = np.ones(len(place)) if weights is None else np.asarray(weights, dtype=np.float64)
    given: Floats = np.bincount(place, w).astype(np.float64)
    if not len(given) or given.max() <= most * given.sum():
        return w, ""
    top = int(given.argmax())
    share = given[top] / given.sum()
    who = f"the key {names[top]}" if str(names[top]) else "callers without a key"
    said = f"{who} sent {share:.0%} of the labels, and one may send at most {most:.0%}"
    if len(given) * most < 1:
        return w, f"{said}, which {len(given)} keys cannot keep to"
    level = _level(np.sort(given)[::-1], most)
    factor = np.minimum(1.0, level / given)
    kept = float((given * factor).sum() / given.sum())
    return w * factor[place], "" if kept >= LEAST_KEPT else f"{said}; bounded, {kept:.0%} of their weight is left"


def _level(given: Floats, most: float) -> float:
    """Return what the largest keys are brought down to; ``given`` is in falling order."""
    rest = given.sum() - np.cumsum(given)
    for bounded in range(1, len(given) + 1):
        # The level L of the first ones, with L = most (bounded L + rest).
        room = 1 - most * bounded
        if room <= 1e-12:
            break
        level = most * rest[bounded - 1] / room
        if bounded == len(given) or given[bounded] <= level:
            return float(level)
    return float(given[-1])
