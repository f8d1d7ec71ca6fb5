"""Select the winner of a sweep. Pure.

The rule: the best finite value among complete trials that keep ``sweep.constraints``. A trial that the scheduler
stopped (``pruned``) is eligible only where no trial is complete: its value is the best of few epochs under a truncated
learning rate schedule, and ``train`` with its configuration would not stop there. Failed trials and those that break a
constraint never win. Of equal values the trial with fewer epochs wins, then the one with the lower number. Where
configurations were trained with several seeds (``ranking``), these are compared, by their means.

Several objectives: the eligible trials that no other dominates are the Pareto front (``pareto``). The winner is the
trial of the front that is best in the first objective; users may choose another.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from raymlops.errors import SweepError
from raymlops.tuning.constraints import violations
from raymlops.tuning.study.ranking import chosen_run, ranking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from raymlops.config.sweep import Threshold
    from raymlops.records import Objective, TrialRecord, TrialStatus

MAX_REASONS = 6


def select(
    trials: Sequence[TrialRecord],
    *,
    objectives: Sequence[Objective],
    constraints: Mapping[str, Threshold] | None = None,
) -> TrialRecord:
    """Return the winner. ``constraints`` serve the error message: a record has its own ``feasible``.

    Raises:
        SweepError: no trial has a finite value and keeps the constraints; the message groups the failures by reason, or
            names the trial nearest to the constraints and its violations.
    """
    if (best := winner(trials, objectives=objectives, constraints=constraints)) is not None:
        return best
    trials = [trial for trial in trials if not trial.imported]
    hint = "Run one configuration by itself with `raymlops train` to see it fail."
    broken = [trial for trial in trials if _usable(trial, objectives=objectives)]
    if broken:
        raise SweepError(
            _infeasible(broken, constraints or {}, total=len(trials)),
            hint="Loosen sweep.constraints, widen sweep.space, or extend the sweep with more trials.",
        )
    raise SweepError(_nothing(trials), hint=hint)


def winner(
    trials: Sequence[TrialRecord],
    *,
    objectives: Sequence[Objective],
    constraints: Mapping[str, Threshold] | None = None,
) -> TrialRecord | None:
    """Return the winner; None where no trial has a finite value and keeps the constraints."""
    repeated = ranking(trials, objectives=objectives, constraints=constraints)
    if (run := chosen_run(repeated, trials, objective=objectives[0])) is not None:
        return run
    # One whose mean breaks a constraint has only been lucky in the search.
    lucky = {each.number for each in repeated if not each.feasible}
    front = _front(
        _eligible([trial for trial in trials if trial.number not in lucky], objectives=objectives)
        or _eligible(trials, objectives=objectives)
    )
    best = min(front, key=lambda item: (item[1][0], item[0].epochs, item[0].number), default=None)
    return None if best is None else best[0]


def pareto(trials: Sequence[TrialRecord], *, objectives: Sequence[Objective]) -> tuple[int, ...]:
    """Return the numbers of the eligible trials on the Pareto front: no other is as good in all and better in one.

    Empty where there is one objective.
    """
    if len(objectives) < 2:
        return ()
    return tuple(sorted(trial.number for trial, _ in _front(_eligible(trials, objectives=objectives))))


def reasons(trials: Sequence[TrialRecord]) -> list[str]:
    """Return one line for each reason why trials gave no value, the most frequent first."""
    ordered = by_reason(trials, reason_of=_reason)
    lines = [f"{len(group)} x {_reason(group[0])}  (trial {numbers(group)})" for group in ordered[:MAX_REASONS]]
    if len(ordered) > MAX_REASONS:
        lines.append(f"and {len(ordered) - MAX_REASONS} more reasons")
    return lines


def numbers(trials: Sequence[TrialRecord]) -> str:
    """Return the first numbers of trials: ``0, 1, 4, ...``."""
    return ", ".join(str(trial.number) for trial in trials[:8]) + (", ..." if len(trials) > 8 else "")


def by_reason(trials: Iterable[TrialRecord], *, reason_of: Callable[[TrialRecord], str]) -> list[list[TrialRecord]]:
    """Return trials grouped by reason, the most frequent first.

    Reasons that differ in numbers alone ("loss is NaN at step 31") are one reason.
    """
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        groups.setdefault(re.sub(r"\d[\d.e+-]*", "#", reason_of(trial)), []).append(trial)
    return sorted(groups.values(), key=lambda group: (-len(group), group[0].number))


def failures(trials: Sequence[TrialRecord]) -> list[str]:
    """Return why the sweep's own trials failed, as ``reasons`` does; empty where none has."""
    return reasons([trial for trial in trials if trial.status == "failed" and not trial.carried_from])


def _eligible(
    trials: Sequence[TrialRecord], *, objectives: Sequence[Objective]
) -> list[tuple[TrialRecord, tuple[float, ...]]]:
    """Return the trials that may win, with their values as costs: lower is better."""
    signs = [1.0 if objective.mode == "min" else -1.0 for objective in objectives]
    statuses: tuple[TrialStatus, ...] = ("complete", "pruned")
    for status in statuses:
        found = [
            (trial, tuple(sign * value for sign, value in zip(signs, _values(trial), strict=True)))
            for trial in trials
            if trial.status == status
            and trial.feasible
            and trial.repeat_of is None
            and not trial.imported
            and _usable(trial, objectives=objectives)
        ]
        if found:
            return found
    return []


def _usable(trial: TrialRecord, *, objectives: Sequence[Objective]) -> bool:
    values = _values(trial)
    return trial.status != "failed" and len(values) == len(objectives) and all(map(math.isfinite, values))


def _values(trial: TrialRecord) -> tuple[float, ...]:
    return trial.values or (() if trial.value is None else (trial.value,))


def _front(eligible: list[tuple[TrialRecord, tuple[float, ...]]]) -> list[tuple[TrialRecord, tuple[float, ...]]]:
    # In lexicographic order a trial can be dominated only by an earlier one, and if by any, then by one of the front.
    front: list[tuple[TrialRecord, tuple[float, ...]]] = []
    for trial, costs in sorted(eligible, key=lambda item: item[1]):
        if not any(
            other != costs and all(mine <= theirs for mine, theirs in zip(other, costs, strict=True))
            for _, other in front
        ):
            front.append((trial, costs))
    return front


def _infeasible(broken: Sequence[TrialRecord], constraints: Mapping[str, Threshold], *, total: int) -> str:
    head = f"none of {total} trials keeps sweep.constraints"
    known = [trial for trial in broken if not math.isnan(_distance(trial, constraints))]
    if not known or not constraints:
        return head
    nearest = min(known, key=lambda trial: (_distance(trial, constraints), trial.number))
    details = []
    for key, excess in violations(nearest.metrics, constraints=constraints).items():
        name, _, side = key.rpartition(" ")
        if excess > 0:
            bound = getattr(constraints[name], side)
            word = "at most" if side == "max" else "at least"
            details.append(f"{name} is {nearest.metrics[name]:.6g}, allowed is {word} {bound:.6g} ({excess:.3g} off)")
    return f"{head}; the nearest is trial {nearest.number}: {'; '.join(details)}"


def _distance(trial: TrialRecord, constraints: Mapping[str, Threshold]) -> float:
    """Return the sum of a trial's violations, each relative to its bound."""
    total = 0.0
    for key, excess in violations(trial.metrics, constraints=constraints).items():
        name, _, side = key.rpartition(" ")
        total += max(0.0, excess) / (abs(getattr(constraints[name], side)) or 1.0) if math.isfinite(excess) else excess
    return total


def _nothing(trials: Sequence[TrialRecord]) -> str:
    if not trials:
        return "the sweep ended before any trial started"
    lines = [f"  {line}" for line in reasons(trials)]
    return "\n".join([f"none of {len(trials)} trials gave a usable value", *lines])


def _reason(trial: TrialRecord) -> str:
    text = trial.reason or f"{trial.status} with the value {trial.value}"
    line = text.strip().splitlines()[0]
    return line if len(line) <= 160 else f"{line[:157]}..."
