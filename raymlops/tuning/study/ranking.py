"""Rank the configurations of a sweep that were trained with several seeds (``sweep.repeats``). Pure.

The rule: the best mean of the sweep's metric over all runs of a configuration, the search's own included. One that has
a single run left, since its repeats failed, is chosen only where all have. The means of the metrics must keep
``sweep.constraints``.

The search's own run made the configuration a candidate, so that it is optimistic, and so is, by an n-th of that, the
mean. It counts in the choice, which is better with it: all candidates have that bias. What to expect of another run is
the mean of the repeats alone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from raymlops.records import RepeatRecord
from raymlops.tuning.constraints import violations

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from raymlops.config.sweep import Threshold
    from raymlops.records import Objective, TrialRecord


def candidates(trials: Iterable[TrialRecord], *, objective: Objective, top: int) -> list[TrialRecord]:
    """Return the best complete trials of the search that keep the constraints, each of another configuration."""
    sign = _sign(objective)
    found = [trial for trial in trials if trial.repeat_of is None and not trial.imported and trial.feasible]
    found = [trial for trial in found if _value(trial) is not None]
    found.sort(key=lambda trial: (sign * (trial.value or 0.0), trial.epochs, trial.number))
    distinct: dict[str, TrialRecord] = {}
    for trial in found:
        distinct.setdefault(repr(sorted(trial.params.items())), trial)
    return list(distinct.values())[:top]


def planned(chosen: Sequence[TrialRecord], *, seeds: int, first: int) -> Iterator[tuple[TrialRecord, int]]:
    """Yield each repeat as its trial and its seed, a seed for all trials before the next: a budget may end them.

    ``first`` is the seed of the search's trials.
    """
    for further in range(1, seeds):
        for trial in chosen:
            yield trial, (first + further) % 2**32


def ranking(
    trials: Sequence[TrialRecord],
    *,
    objectives: Sequence[Objective],
    constraints: Mapping[str, Threshold] | None = None,
) -> tuple[RepeatRecord, ...]:
    """Return the configurations that have repeats, the chosen one first; empty where none has."""
    known = {trial.number: trial for trial in trials}
    runs: dict[int, list[TrialRecord]] = {}
    for trial in trials:
        if trial.repeat_of in known:
            runs.setdefault(trial.repeat_of, [known[trial.repeat_of]]).append(trial)
    sign = _sign(objectives[0])
    found = [_repeated(number, group, constraints or {}) for number, group in runs.items()]
    kept = [each for each in found if each is not None]
    kept.sort(key=lambda each: (not each.feasible, each.error is None, sign * each.mean, each.number))
    return tuple(_with_probabilities(kept, sign=sign))


def chosen(ranked: Sequence[RepeatRecord]) -> RepeatRecord | None:
    """Return the configuration that is chosen by its mean; None where nothing is."""
    return ranked[0] if ranked and ranked[0].error is not None and ranked[0].feasible else None


def chosen_run(
    ranked: Sequence[RepeatRecord], trials: Iterable[TrialRecord], *, objective: Objective
) -> TrialRecord | None:
    """Return the run of the first configuration that is to be registered; None where nothing is chosen by its mean.

    Its best one by validation that keeps the constraints: one model goes live, and nothing else is known of it. As the
    best of several its value is optimistic; what the configuration gives is the mean.
    """
    if (first := chosen(ranked)) is None:
        return None
    sign, known = _sign(objective), {trial.number: trial for trial in trials}
    runs = [known[number] for number in first.trials if known[number].feasible]
    return min(runs, key=lambda run: (sign * (run.value or 0.0), run.number))


def verdict(ranked: Sequence[RepeatRecord], *, metric: str) -> str:
    """Return in words what was chosen by its mean, and how sure that is; empty where nothing was repeated."""
    if not ranked:
        return ""
    first, *others = ranked
    words = f"trial {first.number}: {metric} {first.words()}"
    for second in others[:1]:
        sure = "" if second.probability is None else f", better with a probability of {second.probability:.2f} than"
        words += f"{sure or ', before'} trial {second.number}: {second.words()}"
    return words if all(each.same_data for each in ranked) else f"{words}. {_OTHER_DATA}"


_OTHER_DATA = (
    "Their rows differ by seed, so that the best run may have the easiest split: split by a fixed seed, not self.seed"
)


def _sign(objective: Objective) -> float:
    return 1.0 if objective.mode == "min" else -1.0


def _value(trial: TrialRecord) -> float | None:
    value = trial.value if trial.status == "complete" else None
    return value if value is not None and math.isfinite(value) else None


def _repeated(number: int, group: Sequence[TrialRecord], constraints: Mapping[str, Threshold]) -> RepeatRecord | None:
    runs = [trial for trial in group if _value(trial) is not None]
    if not runs:
        return None
    shared = set.intersection(*(set(run.metrics) for run in runs))
    metrics = {name: _spread([run.metrics[name] for run in runs]) for name in sorted(shared)}
    broken = violations({name: mean for name, (mean, _) in metrics.items()}, constraints=constraints)
    mean, std = _spread([run.value or 0.0 for run in runs])
    return RepeatRecord(
        number,
        tuple(run.number for run in runs),
        mean,
        std,
        error=None if std is None else std / math.sqrt(len(runs)),
        expected=fmean(fresh) if (fresh := [run.value or 0.0 for run in runs if run.repeat_of is not None]) else None,
        failed=len(group) - len(runs),
        feasible=all(excess <= 0 for excess in broken.values()) and any(run.feasible for run in runs),
        metrics=metrics,
        same_data=len({run.fingerprint for run in runs if run.fingerprint}) <= 1,
    )


def _spread(values: Sequence[float]) -> tuple[float, float | None]:
    return fmean(values), stdev(values) if len(values) > 1 else None


def _with_probabilities(ranked: Sequence[RepeatRecord], *, sign: float) -> Iterator[RepeatRecord]:
    """Yield the records with the probability that the first one is better than each other.

    With a flat prior and the same noise of seeds everywhere, a difference of means d has the posterior of Student's t:
    P = F(d / (s * sqrt(1/n + 1/m))), where s^2 is pooled over all configurations, and F has as many degrees of freedom
    as there are runs less configurations (Gelman et al., Bayesian Data Analysis, 3.2).
    """
    repeated = [each for each in ranked if each.std is not None]
    freedom = sum(len(each.trials) - 1 for each in repeated)
    for place, each in enumerate(ranked):
        if place == 0 or not freedom or not each.feasible:
            yield each
            continue
        from scipy.special import stdtr

        pooled = sum((len(one.trials) - 1) * (one.std or 0.0) ** 2 for one in repeated) / freedom
        scale = math.sqrt(pooled * (1 / len(ranked[0].trials) + 1 / len(each.trials)))
        ahead = sign * (each.mean - ranked[0].mean)
        sure = float(stdtr(freedom, ahead / scale)) if scale else float(ahead > 0) or 0.5
        yield replace(each, probability=sure)
