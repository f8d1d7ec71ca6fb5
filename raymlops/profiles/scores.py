"""What is kept of how columns go together: sums of products of their scores, two by two, which add up exactly.

A score is a small integer, so that a sum of products of any number of rows is exact. A number's rises from bin to bin,
around 0: with about eight bins of equally many rows it says nearly as much as the rank (of a normal variable's
correlation 97%). A text's is 1 where it is one category, and else -1. A missing value has 0. The sums are those of

    1 with each score, and each score with itself and with those before it,

which give means, variances and correlations of any window of rows; no row can be told from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from raymlops.profiles.measures import Measure

MOST_SCORES = 32
"""Of a table: 560 sums."""
SCORE_BINS = 8
CATEGORIES = 3
"""Of a text column, the commonest: each has a score."""
_TOGETHER = 128
"""Rows that are multiplied at a time: for more OpenBLAS takes several threads, which on busy cores wait for each other
(65,536 rows of 20 columns took 480 ms there instead of 1)."""


@dataclass(frozen=True, eq=False)
class Score:
    """A number by its bin, or whether a text is one category."""

    column: str
    measure: Measure
    edges: npt.NDArray[np.float64]
    category: str = ""

    @property
    def name(self) -> str:
        """Return the column, or ``COLUMN=CATEGORY``."""
        return f"{self.column}={self.category}" if self.measure == "category" else self.column

    def of(self, values: Any, categories: tuple[str, ...]) -> npt.NDArray[np.int8]:
        """Return the score of each value; of a text by its cell, which is one of ``categories``, others or missing."""
        if self.measure == "category":
            of_cell = np.array([*(1 if each == self.category else -1 for each in categories), -1, 0], np.int8)
            return np.asarray(of_cell[values])
        above = np.zeros(len(values), np.int8)
        for edge in self.edges:  # in a tenth of the time that looking a value up takes
            above += (values >= edge).view(np.int8)
        found = 2 * above - np.int8(len(self.edges))
        found[np.isnan(values)] = 0
        return np.asarray(found, np.int8)


def number_of_sums(scores: int) -> int:
    """Return how many sums so many scores have."""
    return (scores + 1) * (scores + 2) // 2 - 1


def sums_of_pair(one: int, other: int) -> tuple[int, int, int, int, int]:
    """Return the places of the sums of two scores, of their squares, and of their product."""

    def place(high: int, low: int) -> int:
        return high * (high + 1) // 2 + low - 1

    x, y = one + 1, other + 1
    return place(x, 0), place(y, 0), place(x, x), place(y, y), place(max(x, y), min(x, y))


def sums_of(scored: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the sums of rows, of shape (1 + scores, rows), the first of 1; exact, since no score is beyond 16."""
    scores, rows = scored.shape
    whole = rows // _TOGETHER
    parts = scored[:, : whole * _TOGETHER].reshape(scores, whole, _TOGETHER).swapaxes(0, 1)
    rest = scored[:, whole * _TOGETHER :]
    products = (parts @ parts.swapaxes(1, 2)).sum(axis=0, dtype=np.float64) + rest @ rest.T
    return np.asarray(products[np.tril_indices(scores)][1:], np.int64)
