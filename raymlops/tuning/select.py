"""Which trial of a sweep wins.

Pure: takes records, returns one of them or says why there is none.

The rule: the best finite value among trials that ran to their end. A trial that the scheduler stopped (``pruned``) is
eligible only where none ran to its end: its value is the best of the few epochs it was given, under a
learning rate schedule that was cut off, and ``train`` with its configuration would not stop there. Failed
trials never win. Of equal values the one with fewer epochs wins, then the one with the lower number.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from raymlops.errors import SweepError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.records import TrialRecord, TrialStatus

MAX_REASONS = 6


def select(trials: Sequence[TrialRecord], *, mode: str) -> TrialRecord:
    """Return the winner; ``mode`` says whether the smallest (``min``) or largest (``max``) value is best.

    Raises:
        SweepError: no trial has a finite value; the message counts the trials and groups why each failed.
    """
    sign = 1.0 if mode == "min" else -1.0
    statuses: tuple[TrialStatus, ...] = ("complete", "pruned")
    for status in statuses:
        eligible = [
            (sign * trial.value, trial.epochs, trial.number, trial)
            for trial in trials
            if trial.status == status and trial.value is not None and math.isfinite(trial.value)
        ]
        if eligible:
            return min(eligible, key=lambda item: item[:3])[3]
    raise SweepError(_nothing(trials), hint="Run one configuration by itself with `raymlops train` to see it fail.")


def _nothing(trials: Sequence[TrialRecord]) -> str:
    if not trials:
        return "the sweep ended before any trial started"
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        # Reasons that differ in numbers alone ("loss is NaN at step 31") are one reason.
        groups.setdefault(re.sub(r"\d[\d.e+-]*", "#", _reason(trial)), []).append(trial)
    lines = [f"none of {len(trials)} trials gave a usable value"]
    ordered = sorted(groups.values(), key=lambda group: (-len(group), group[0].number))
    for group in ordered[:MAX_REASONS]:
        numbers = ", ".join(str(trial.number) for trial in group[:8]) + (", ..." if len(group) > 8 else "")
        lines.append(f"  {len(group)} x {_reason(group[0])}  (trial {numbers})")
    if len(ordered) > MAX_REASONS:
        lines.append(f"  and {len(ordered) - MAX_REASONS} more reasons")
    return "\n".join(lines)


def _reason(trial: TrialRecord) -> str:
    text = trial.reason or f"{trial.status} with the value {trial.value}"
    line = text.strip().splitlines()[0]
    return line if len(line) <= 160 else f"{line[:157]}..."
