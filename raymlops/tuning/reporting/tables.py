# ruff: noqa: RUF001 - dashes and minus signs are what a reader expects in a table
"""Tables of a sweep: the winner and its runners-up, failures by reason, all trials.

Owns what a row says. Knows records alone, nothing of Optuna, files or the page around it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from raymlops.display import duration
from raymlops.tuning.reporting.plots import short
from raymlops.tuning.study.selection import by_reason, numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from raymlops.records import Objective, RepeatRecord, TrialRecord

MAX_ROWS = 1000
TOP = 5
WORDS = {"complete": "complete", "pruned": "stopped early", "failed": "failed"}


class Cell(NamedTuple):
    """What a cell shows, and what it is sorted by where that is not its text."""

    text: str
    sort: float | str | None = None
    mark: bool = False
    words: bool = False
    """Whether its text may be broken into lines."""
    note: str = ""
    detail: str = ""


class Table(NamedTuple):
    """A table with the names of its columns."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = False


EMPTY = Cell("–", sort="")


def tables_of(
    records: Sequence[TrialRecord],
    *,
    best: TrialRecord | None,
    objectives: Sequence[Objective],
    params: Sequence[str],
    front: Sequence[int],
    constrained: bool,
) -> dict[str, Table]:
    """Return the tables ``winner``, ``failed`` and ``trials`` of a sweep, those that have rows.

    Each of ``params`` has a column, and so has whether a trial keeps the constraints, where the sweep is
    ``constrained``. ``front`` are the numbers of the trials on the Pareto front.
    """
    order = ranked(records, objectives=objectives)
    found = {"failed": failures(records)}
    if best is not None:
        rivals = [
            trial
            for trial in order
            if trial != best and trial.value is not None and trial.feasible and trial.repeat_of is None
        ]
        rivals.sort(key=lambda trial: trial.number not in front)  # of several objectives, the front before the beaten
        found["winner"] = top([best, *rivals], objectives=objectives, params=params)
    found["trials"] = everything(order, objectives=objectives, params=params, front=front, constrained=constrained)
    return {name: table for name, table in found.items() if table.rows}


def ranked(records: Iterable[TrialRecord], *, objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Return the trials from best to worst by the first objective.

    Whole trials that keep the constraints come before those stopped early, and these before ones without a value.
    """
    sign = 1.0 if objectives[0].mode == "min" else -1.0
    statuses = tuple(WORDS)

    def place(trial: TrialRecord) -> tuple[Any, ...]:
        missing = trial.value is None or not math.isfinite(trial.value)
        value = 0.0 if missing else sign * float(trial.value or 0.0)
        return missing, not trial.feasible, statuses.index(trial.status), value, trial.epochs, trial.number

    return sorted(records, key=place)


def top(order: Sequence[TrialRecord], *, objectives: Sequence[Objective], params: Sequence[str]) -> Table:
    """Return the table of the winner, the first of ``order``, against the next ones.

    What differs from the winner's configuration is marked.
    """
    winner, several = order[0], len(objectives) > 1
    head = ["trial"]
    for objective in objectives:
        head += [objective.metric, f"{objective.metric}: difference" if several else "difference"]
    rows = []
    for trial in order[:TOP]:
        cells = [_number(trial)]
        for value, best in zip(_values(trial, objectives), _values(winner, objectives), strict=True):
            known = trial is not winner and value is not None and best is not None
            cells += [_value(value), Cell(f"{value - best:+.3g}".replace("-", "−")) if known else EMPTY]  # type: ignore[operator]
        cells += [Cell(str(trial.epochs)), _duration(trial)]
        cells += [_param(trial, name, mark=trial.params.get(name) != winner.params.get(name)) for name in params]
        rows.append(cells)
    caption = "The winner first. Marked: what is set differently from it."
    return Table(caption, [*head, "epochs", "duration", *map(short, params)], rows)


def repeated(ranked: Sequence[RepeatRecord], *, objective: Objective) -> Table:
    """Return the table of the configurations that were trained with several seeds, the chosen one first."""
    others = sorted(set.intersection(*(set(each.metrics) for each in ranked)) - {objective.metric})
    head = [
        "trial",
        "runs",
        objective.metric,
        "± error",
        "without the search's run",
        "failed",
        "the first is better",
        *others,
    ]
    rows = []
    for each in ranked:
        cells = [Cell(str(each.number), sort=each.number), Cell(", ".join(map(str, each.trials)), words=True)]
        cells += [_value(each.mean), EMPTY if each.error is None else Cell(f"{each.error:.2g}", sort=each.error)]
        cells += [_value(each.expected), Cell(str(each.failed) if each.failed else "–", sort=each.failed)]
        cells += [EMPTY if each.probability is None else Cell(f"{each.probability:.0%}", sort=each.probability)]
        for name in others:
            mean, std = each.metrics[name]
            cells.append(Cell(f"{mean:.6g}", sort=mean, note="" if std is None else f"± {std:.2g} a run"))
        rows.append(cells)
    caption = "Means over seeds, the chosen one first. Of other metrics the standard deviation of a run is shown."
    return Table(caption, head, rows)


def failures(records: Iterable[TrialRecord]) -> Table:
    """Return the table of failed trials by reason, most frequent first.

    Reasons that differ in numbers alone ("loss is NaN at step 31") are one reason.
    """
    rows = []
    failed = [trial for trial in records if trial.status == "failed"]
    for group in by_reason(failed, reason_of=lambda trial: _reason(trial).splitlines()[0]):
        reason = _reason(group[0])
        first, _, rest = reason.partition("\n")
        long = bool(rest.strip()) or len(first) > 300
        text = first if len(first) <= 300 else f"{first[:297]}..."
        which = Cell(numbers(group), words=True)
        rows.append([Cell(str(len(group))), Cell(text, words=True, detail=reason[:20_000] if long else ""), which])
    caption = "Why trials failed. Reasons that differ in numbers alone are one."
    return Table(caption, ["trials", "reason", "which"], rows)


def everything(
    order: Sequence[TrialRecord],
    *,
    objectives: Sequence[Objective],
    params: Sequence[str],
    front: Sequence[int],
    constrained: bool,
) -> Table:
    """Return the table of all trials in the order given; past ``MAX_ROWS`` of them it says how many there are."""
    several = len(objectives) > 1
    head = ["trial", "state", *(objective.metric for objective in objectives), "epochs", "duration"]
    head += ["beaten"] if several else []
    head += ["constraints"] if constrained else []
    rows = []
    for trial in order[:MAX_ROWS]:
        cells = [_number(trial), Cell(WORDS[trial.status]), *map(_value, _values(trial, objectives))]
        cells += [Cell(str(trial.epochs)), _duration(trial)]
        if several:
            beaten = Cell("by none" if trial.number in front else "yes")
            cells.append(beaten if trial.status == "complete" and trial.feasible else EMPTY)
        if constrained:
            cells.append(EMPTY if trial.value is None else Cell("kept" if trial.feasible else "broken"))
        rows.append([*cells, *(_param(trial, name) for name in params)])
    caption = "All trials, best first."
    if len(order) > MAX_ROWS:
        caption = f"The best {MAX_ROWS:,} of {len(order):,} trials; the Optuna study and MLflow hold all of them."
    return Table(caption, [*head, *map(short, params)], rows, sortable=True)


def _reason(trial: TrialRecord) -> str:
    return trial.reason.strip() or "no reason was recorded"


def _values(trial: TrialRecord, objectives: Sequence[Objective]) -> list[float | None]:
    if len(trial.values) == len(objectives):
        return list(trial.values)
    return [trial.value, *[trial.metrics.get(objective.metric) for objective in objectives[1:]]]


def _number(trial: TrialRecord) -> Cell:
    note = f"from {trial.carried_from}" if trial.carried_from else ""
    if trial.repeat_of is not None:
        note = f"repeats {trial.repeat_of}"
    return Cell(str(trial.number), sort=trial.number, note=note)


def _value(value: float | None) -> Cell:
    return EMPTY if value is None else Cell(f"{value:.6g}", sort=value)


def _duration(trial: TrialRecord) -> Cell:
    taken_s = trial.duration_s
    return Cell(f"{taken_s:.3g} s" if taken_s < 60 else duration(taken_s), sort=taken_s)


def _param(trial: TrialRecord, name: str, *, mark: bool = False) -> Cell:
    if name not in trial.params:
        return Cell("–", sort="", mark=mark)
    value = trial.params[name]
    if isinstance(value, bool) or value is None:
        return Cell({True: "true", False: "false", None: "null"}[value], mark=mark)
    return Cell(f"{value:.6g}" if isinstance(value, float) else str(value), mark=mark)
