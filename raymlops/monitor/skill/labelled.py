"""Two versions' losses on the same labelled rows, and which of these rows count. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from raymlops.monitor.skill.admission import admit, bound_keys
from raymlops.monitor.skill.verdict import Paired

Floats = npt.NDArray[np.float64]
_NONE = np.zeros(0)


@dataclass(frozen=True)
class Labelled:
    """The losses of both on labelled rows, and what decides whether these count.

    Attributes:
        champion: Its losses.
        challenger: Its losses.
        clusters: The request of each row.
        weights: For how many it stands.
        callers: Whose it is: a name, empty for anybody's.
        asked: When it was answered, seconds.
        received: When its first label came.
        contradicted: Whether its labels contradict each other, and none is a correction.
    """

    champion: Floats = field(default_factory=lambda: _NONE)
    challenger: Floats = field(default_factory=lambda: _NONE)
    clusters: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    weights: Floats = field(default_factory=lambda: _NONE)
    callers: npt.NDArray[Any] = field(default_factory=lambda: np.zeros(0, dtype=object))
    asked: Floats = field(default_factory=lambda: _NONE)
    received: Floats = field(default_factory=lambda: _NONE)
    contradicted: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __add__(self, other: Labelled) -> Labelled:
        """Return those of both."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return Labelled(*(np.concatenate(pair) for pair in pairs))

    def counted(self, *, max_caller_share: float) -> tuple[Labelled, str, str]:
        """Return the rows that count, weighted so that no caller decides alone; why none do; and what to know of them.

        Where all labels are of one caller there is nobody else to believe.
        """
        found = admit(
            np.zeros(len(self.champion)),
            known=[True],
            asked=self.asked,
            received=self.received,
            contradicted=self.contradicted,
        )
        if found.refused:
            return self, found.refused, ""
        kept = Labelled(*(getattr(self, name)[found.rows] for name in self.__dataclass_fields__))
        if len(np.unique(names := kept.callers.astype(str))) < 2:
            return kept, "", found.note
        weights, refused = bound_keys(names, most=max_caller_share, weights=kept.weights)
        bounded = "labels of the largest callers weigh less" if (weights < kept.weights).any() else ""
        return replace(kept, weights=weights), refused, "; ".join(filter(None, (found.note, bounded)))

    def paired(self) -> Paired | None:
        """Return both in units of the champion's mean loss; None without a loss to be a unit."""
        mean = float(np.average(self.champion, weights=self.weights)) if len(self.champion) else 0.0
        if not mean > 0:
            return None
        weights = None if (self.weights == 1).all() else self.weights
        return Paired.of(self.champion, self.challenger, clusters=self.clusters, reference=mean, weights=weights)
