"""Summaries of one column, as JSON data. Pure: arrays in, numbers out.

Numbers get moments, quantiles and a histogram whose bins hold about equally many values each, so that it is as fine
where the data is dense as it can be; categories get the counts of the commonest. NaN and None count as missing,
infinities are counted apart and left out of everything else.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable

BINS = 20
TOP = 50
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def numeric_summary(values: npt.NDArray[Any], *, bins: int = BINS) -> dict[str, Any]:
    """Summarise numbers of any shape.

    ``edges`` are k + 1 rising numbers and ``counts`` the k numbers of values in [edge, next edge), the last bin closed;
    ties make fewer bins than ``bins``. A constant gives one bin of no width. ``std`` is that of the population.
    """
    numbers = np.asarray(values, dtype=np.float64).ravel()
    finite = np.sort(numbers[np.isfinite(numbers)])
    summary: dict[str, Any] = {
        "kind": "numeric",
        "count": int(numbers.size),
        "missing": int(np.isnan(numbers).sum()),
        "infinite": int(np.isinf(numbers).sum()),
    }
    if not finite.size:
        return summary | {"edges": [], "counts": []}
    # Sorted once: a quantile is then an interpolation (numpy's default, type 7 of Hyndman and Fan, 1996).
    places = np.arange(finite.size)
    edges = np.unique(np.interp(np.linspace(0, finite.size - 1, bins + 1), places, finite))
    if edges.size == 1:
        edges = np.repeat(edges, 2)
    below = np.searchsorted(finite, edges[1:-1], side="left")
    quantiles = np.interp(np.array(_QUANTILES) * (finite.size - 1), places, finite)
    return summary | {
        "mean": float(finite.mean()),
        "std": float(finite.std()),
        "min": float(finite[0]),
        "max": float(finite[-1]),
        "quantiles": {str(q): float(value) for q, value in zip(_QUANTILES, quantiles, strict=True)},
        "edges": edges.tolist(),
        "counts": np.diff([0, *below.tolist(), finite.size]).tolist(),
    }


def category_summary(values: Iterable[Any], *, top: int = TOP) -> dict[str, Any]:
    """Count categories: ``counts`` holds the ``top`` commonest as ``[value, count]``, ``other`` the rest together.

    Equal counts are in the order of their text, so that the same data gives the same summary.
    """
    counter = Counter(None if value is None or value != value else value for value in values)  # noqa: PLR0124 - NaN
    missing = counter.pop(None, 0)
    ranked = sorted(counter.items(), key=lambda item: (-item[1], str(item[0])))
    return {
        "kind": "categorical",
        "count": counter.total() + missing,
        "missing": missing,
        "distinct": len(ranked),
        "counts": [[value, count] for value, count in ranked[:top]],
        "other": sum(count for _, count in ranked[top:]),
    }
