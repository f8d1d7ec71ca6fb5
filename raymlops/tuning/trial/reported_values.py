"""Validate the metrics that a trial reports. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


STEP = "step"
"""Key of the step among an epoch's metrics, which schedulers may count; MLflow does not get it."""


def judged_metrics(project: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the metrics that every trial must report, the first objective first; ``project`` is plain data."""
    train, sweep = project["train"], project["sweep"]
    objectives = list(sweep["objectives"]) or [sweep["metric"] or train["metric"]]
    clock = [] if sweep["resource"] in {"epoch", "step"} else [sweep["resource"]]
    return tuple(dict.fromkeys([*objectives, train["metric"], *sweep["constraints"], *clock]))


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are numbers as floats, NaN and infinity included."""
    found = {name: _number(value) for name, value in metrics.items()}
    return {name: value for name, value in found.items() if value is not None}


def refusal(metrics: Mapping[str, Any], *, names: Sequence[str], epoch: int) -> str:
    """Return what is wrong with an epoch's metrics; empty where nothing is."""
    for name, value in metrics.items():
        if _number(value) is None:
            return f"{name} is {value!r} after epoch {epoch}; a metric is a number"
    missing = [name for name in names if name not in metrics]
    if missing:
        return f"{', '.join(missing)} was not reported; reported: {', '.join(sorted(metrics))}"
    for name in names:
        if not math.isfinite(metrics[name]):
            return f"{name} is {float(metrics[name])} after epoch {epoch}"
    return ""


def not_finite(metrics: Mapping[str, Any], *, names: Sequence[str]) -> bool:
    """Return whether one of the metrics is a number, and not a finite one."""
    values = [_number(metrics.get(name)) for name in names]
    return any(value is not None and not math.isfinite(value) for value in values)


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several elements
        return None
