"""By how much metrics break the constraints of a sweep, and the reverse. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.config.sweep import Threshold


def violations(metrics: Mapping[str, float], *, constraints: Mapping[str, Threshold]) -> dict[str, float]:
    """Return the violation of each bound: above zero where it is broken, zero or less where it is kept.

    The keys are ``METRIC min`` and ``METRIC max``. NaN where the metric is missing or not finite.
    """
    found: dict[str, float] = {}
    for name, bound in constraints.items():
        value = metrics.get(name, math.nan)
        value = value if math.isfinite(value) else math.nan
        if bound.min is not None:
            found[f"{name} min"] = bound.min - value
        if bound.max is not None:
            found[f"{name} max"] = value - bound.max
    return found


def metrics_of(broken: Mapping[str, float], *, constraints: Mapping[str, Threshold]) -> dict[str, float]:
    """Return the metrics that break constraints by so much: the reverse of ``violations``."""
    found: dict[str, float] = {}
    for name, bound in constraints.items():
        if bound.min is not None:
            found[name] = bound.min - broken[f"{name} min"]
        if bound.max is not None:
            found[name] = bound.max + broken[f"{name} max"]
    return found
