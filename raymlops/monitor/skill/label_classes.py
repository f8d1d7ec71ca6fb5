"""The classes of labels, as those of the reference rows have them: numbered from 0. Pure.

Numbers are binned at quantiles of the reference's labels. Where there are very many classes, the rarer ones are one.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.column_types import real
from raymlops.monitor.skill.expected import label_edges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.answer_loss import AnswerLoss
    from raymlops.monitor.skill.expected import Codes

MOST = 60
"""Classes that are told apart: what is kept of them grows with the square."""
_BINNED = 20
"""More numbers than these, as labels of a recipe's own loss, are binned."""


@dataclass(frozen=True)
class LabelClasses:
    """Of labels by one rule.

    Attributes:
        values: What ``AnswerLoss.class_of`` returns for each class, in order; empty where labels are binned.
        edges: Inner edges of the bins of numbers.
        pooled: Whether all further classes are one more, also those that the reference has none of.
    """

    values: tuple[int | str, ...] = ()
    edges: tuple[float, ...] = ()
    pooled: bool = False

    @classmethod
    def of(cls, rule: AnswerLoss, labels: Sequence[Any]) -> LabelClasses:
        """Learn them from the reference's labels, those that are classes by the rule."""
        found = [one for one in map(rule.class_of, labels) if one is not None]
        numbers = _numbers(found) if rule.kind == "recipe" else found if rule.kind == "number" else None
        if numbers is not None:
            return cls(edges=tuple(label_edges(numbers).tolist()))
        if rule.kind == "probability" or rule.positive is not None:
            return cls((0, 1))
        counts = Counter(found).most_common()
        kept = [value for value, _ in counts[: MOST - 1 if len(counts) > MOST else MOST]]
        ordered = sorted(kept, key=lambda one: (isinstance(one, str), one))
        return cls(tuple(ordered), pooled=len(counts) > len(kept))  # type: ignore[arg-type]

    @property
    def count(self) -> int:
        """Return how many there are."""
        return len(self.values) + self.pooled if self.values else len(self.edges) + 1

    def codes(self, rule: AnswerLoss, labels: Sequence[Any]) -> Codes:
        """Return the number of each label's class, -1 for a label that is of none."""
        found = list(map(rule.class_of, labels))
        if not self.values:
            numbers = [_number(one) for one in found]
            known = np.array([one is not None for one in numbers], dtype=np.bool_)
            binned = np.searchsorted(self.edges, [one or 0.0 for one in numbers], "right")
            return np.where(known, binned, -1).astype(np.int64)
        other = len(self.values) if self.pooled else -1
        place = {value: at for at, value in enumerate(self.values)}
        return np.array([-1 if one is None else place.get(one, other) for one in found], dtype=np.int64)  # type: ignore[arg-type]

    def name_of(self, code: int) -> str:
        """Return how a class is called."""
        if self.values:
            return str(self.values[code]) if code < len(self.values) else "others"
        ends = ("", *(f"{edge:.4g}" for edge in self.edges), "")
        return f"{ends[code]} to {ends[code + 1]}".strip()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"values": list(self.values), "edges": list(self.edges), "pooled": self.pooled}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelClasses:
        """Rebuild them from the data."""
        return cls(tuple(data["values"]), tuple(map(float, data["edges"])), bool(data["pooled"]))


def _numbers(found: Sequence[Any]) -> list[float] | None:
    """Return the labels of a recipe's own loss as numbers; None where they are not, or are few."""
    numbers = [_number(one) for one in found]
    if any(one is None for one in numbers) or len(set(numbers)) <= _BINNED:
        return None
    return [one for one in numbers if one is not None]


def _number(value: Any) -> float | None:
    """Return a class that is a number, or the text of one, as a recipe's own are."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return None if isinstance(value, str) else real(value)
