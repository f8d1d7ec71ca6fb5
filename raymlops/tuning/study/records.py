"""Conversion between Optuna trials and trial records.

Owns the user attribute ``raymlops`` of each ended trial: one JSON object with what Optuna's own fields do not hold. A
trial without it, written by another program, becomes a ``TrialRecord`` too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from raymlops.records import TrialRecord, TrialStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.records import Objective

ATTRIBUTE = "raymlops"
MAX_HISTORY = 1000
"""Number of newest epochs whose metrics are kept."""

_STATUS: dict[str, TrialStatus] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


def attribute(record: TrialRecord, history: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Return the JSON object that a study stores for a trial. NaN and infinity become null."""
    newest = sorted(history)[-MAX_HISTORY:]
    return {
        "reason": record.reason,
        "run_id": record.run_id,
        "epochs": record.epochs,
        "duration_s": record.duration_s,
        "metrics": _plain(record.metrics),
        "values": [value if math.isfinite(value) else None for value in record.values],
        "feasible": record.feasible,
        "carried_from": record.carried_from,
        "history": {str(epoch): _plain(history[epoch]) for epoch in newest},
    }


def record_of(trial: Any, *, objectives: Sequence[Objective]) -> TrialRecord:
    """Return the record of an ended Optuna trial (``FrozenTrial``), also of one that another program wrote."""
    kept: Mapping[str, Any] = trial.user_attrs.get(ATTRIBUTE, {})
    status = _STATUS[trial.state.name]
    values = _values(trial, kept, several=len(objectives) > 1)
    usable = status != "failed" and bool(values)
    return TrialRecord(
        number=trial.number,
        params=dict(trial.params),
        status=status,
        value=values[0] if usable else None,
        epochs=int(kept.get("epochs", trial.last_step or 0)),
        duration_s=float(kept.get("duration_s", trial.duration.total_seconds() if trial.duration else 0.0)),
        # raymlops 0.1 stored these two in separate attributes.
        reason=str(kept.get("reason", trial.user_attrs.get("raymlops.reason", ""))),
        run_id=kept.get("run_id", trial.user_attrs.get("raymlops.run_id")),
        metrics=_floats(kept.get("metrics", {})),
        values=values if usable and len(objectives) > 1 else (),
        feasible=bool(kept.get("feasible", all(value <= 0 for value in trial.constraints.values()))),
        carried_from=str(kept.get("carried_from", "")),
    )


def history_of(trial: Any) -> dict[int, dict[str, float]]:
    """Return the stored metrics of an Optuna trial by epoch; NaN where one was not finite."""
    kept: Mapping[str, Any] = trial.user_attrs.get(ATTRIBUTE, {})
    return {int(epoch): _floats(metrics) for epoch, metrics in kept.get("history", {}).items()}


def last_value(trial: Any) -> float | None:
    """Return the last value that an Optuna trial reported."""
    return None if trial.last_step is None else float(trial.intermediate_values[trial.last_step])


def _values(trial: Any, kept: Mapping[str, Any], *, several: bool) -> tuple[float, ...]:
    # Optuna holds no values of a pruned trial with several objectives.
    if several:
        return tuple(map(_float, kept.get("values") or trial.values or ()))
    value = trial.values[0] if trial.values else last_value(trial)
    return () if value is None else (float(value),)


def _plain(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}


def _floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: _float(value) for name, value in metrics.items()}


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
