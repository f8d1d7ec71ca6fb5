"""Conversion between Optuna trials and trial records.

Owns the user attribute ``raymlops`` of each ended trial: one JSON object with what Optuna's own fields do not hold.
Owns also the system attribute of each report that was written while its trial ran, which the dashboard does not list;
the user attribute has the others. A trial without any attribute of raymlops was added by another program, and becomes
the ``TrialRecord`` of an imported one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from raymlops.records import IMPORTED_FROM, TrialRecord, TrialStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from raymlops.records import Objective

ATTRIBUTE = "raymlops"
_REPORT = "raymlops:report:"
STARTED = "raymlops:started"
"""System attribute of a trial that a sweep has drawn: whether it has had a process since the sweep was resumed."""
REFUSED = "raymlops:refused"
"""System attribute of a point that the recipe rejects: why."""
RETRY_OF = "raymlops:retry_of"
"""System attribute of a trial that trains a failed one again: its number."""
REPEAT_OF, SEED = "raymlops:repeat_of", "raymlops:seed"
"""User attributes of a trial that trains the configuration of another one with another seed: its number, the seed."""
MAX_HISTORY = 1000
"""Number of newest epochs whose metrics are kept."""

_STATUS: dict[str, TrialStatus] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


@dataclass(frozen=True, slots=True)
class Report:
    """What a trial reported for an epoch."""

    metrics: dict[str, float]
    order: int | None = None
    """Its place among all reports that the scheduler has judged; None where it has not."""
    best: bool = False
    """Whether the epoch is the trial's best one so far."""
    taken_s: float = field(default=0.0, compare=False)
    """Seconds that the trial had run in processes, of a report that was written while it ran."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON. NaN and infinity become null."""
        return {"metrics": _plain(self.metrics), "order": self.order, "best": self.best, "taken_s": self.taken_s}


def attribute(
    record: TrialRecord, history: Mapping[int, Mapping[str, float]], *, orders: Mapping[int, int] | None = None
) -> dict[str, Any]:
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
        "fingerprint": record.fingerprint,
        "history": {str(epoch): _plain(history[epoch]) for epoch in newest},
        "orders": {str(epoch): order for epoch, order in (orders or {}).items()},
    }


def report_key(epoch: int) -> str:
    """Return the system attribute of a report."""
    return f"{_REPORT}{epoch}"


def reports_of(trial: Any) -> dict[int, Report]:
    """Return the reports of an Optuna trial by epoch, old ones without metrics; NaN where one was not finite."""
    kept: Mapping[str, Any] = trial.user_attrs.get(ATTRIBUTE, {})
    orders, history = kept.get("orders", {}), kept.get("history", {})
    # The metrics of old epochs may not be kept.
    found = {int(epoch): Report(_floats(history.get(epoch, {})), orders.get(epoch)) for epoch in {**orders, **history}}
    for epoch, entry in stored_reports(trial).items():
        found[epoch] = Report(_floats(entry["metrics"]), entry["order"], entry["best"], entry.get("taken_s", 0.0))
    return dict(sorted(found.items()))


def stored_reports(trial: Any) -> dict[int, dict[str, Any]]:
    """Return the reports that have an attribute of their own."""
    return {
        int(key.removeprefix(_REPORT)): entry for key, entry in trial.system_attrs.items() if key.startswith(_REPORT)
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
        carried_from=f"{IMPORTED_FROM}{trial.number}" if added(trial) else str(kept.get("carried_from", "")),
        repeat_of=repeat_of(trial),
        seed=trial.user_attrs.get(SEED),
        fingerprint=str(kept.get("fingerprint", "")),
    )


def refused(trial: Any) -> bool:
    """Return whether the recipe rejected an Optuna trial's point, so that it never ran."""
    return REFUSED in trial.system_attrs


def added(trial: Any) -> bool:
    """Return whether another program has run an ended Optuna trial: it is known as an imported one is.

    A trial of the sweep's own that another program has ended lacks what is written at its end alone. One of earlier
    releases lacks the mark of its creation too.
    """
    return not any(
        key == ATTRIBUTE or key.startswith((f"{ATTRIBUTE}:", f"{ATTRIBUTE}."))
        for key in (*trial.user_attrs, *trial.system_attrs)
    )


def repeat_of(trial: Any) -> int | None:
    """Return the trial whose configuration an Optuna trial trains with another seed; None where it is the search's."""
    number: int | None = trial.user_attrs.get(REPEAT_OF)
    return number


def counted(trials: Iterable[Any]) -> list[Any]:
    """Return the trials of a sweep: those that ran or will run, without failed ones that are trained again."""
    found = [trial for trial in trials if not refused(trial)]
    retried = {trial.system_attrs.get(RETRY_OF) for trial in found}
    return [trial for trial in found if trial.number not in retried]


def in_order_of_end(trials: Iterable[Any]) -> list[Any]:
    """Return the trials that have ended, first the one that ended first."""
    ended = [trial for trial in trials if trial.state.is_finished()]
    return sorted(ended, key=lambda trial: (trial.datetime_complete or datetime.max, trial.number))  # noqa: DTZ901


def history_of(trial: Any) -> dict[int, dict[str, float]]:
    """Return the stored metrics of an Optuna trial by epoch; NaN where one was not finite."""
    return {epoch: report.metrics for epoch, report in reports_of(trial).items() if report.metrics}


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
