# ruff: noqa: RUF001 - dashes and minus signs are what a reader expects in a table
"""Tables of a sweep as HTML: the winner and its runners-up, failures by reason, all trials.

Owns what a row says and that everything in it is escaped. Knows records alone, nothing of Optuna, files or the page
around it. Cells that are written for people carry what sorts them in ``data-value``.
"""

from __future__ import annotations

import math
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

from raymlops.tuning.reporting.study_columns import short
from raymlops.tuning.study.selection import by_reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from raymlops.records import Objective, TrialRecord

MAX_ROWS = 1000
TOP = 5
WORDS = {"complete": "complete", "pruned": "stopped early", "failed": "failed"}


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


def top(order: Sequence[TrialRecord], *, objectives: Sequence[Objective], params: Sequence[str]) -> str:
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
            cells += [_value(value), _difference(value, best) if trial is not winner else _dash("the winner itself")]
        cells += [_cell(str(trial.epochs)), _duration(trial)]
        for name in params:
            differs = trial.params.get(name) != winner.params.get(name)
            text = _text(trial.params[name]) if name in trial.params else "–"
            cells.append(f"<td><mark>{text}</mark></td>" if differs else f"<td>{text}</td>")
        rows.append(cells)
    caption = "The winner first. Marked: what is set differently from it."
    return _table([*head, "epochs", "duration", *map(short, params)], rows, caption=caption)


def failures(records: Iterable[TrialRecord]) -> str:
    """Return the table of failed trials by reason, most frequent first; empty where none failed.

    Reasons that differ in numbers alone ("loss is NaN at step 31") are one reason.
    """
    rows = []
    failed = [trial for trial in records if trial.status == "failed"]
    for group in by_reason(failed, said=lambda trial: _reason(trial).splitlines()[0]):
        reason = _reason(group[0])
        first, _, rest = reason.partition("\n")
        shown = escape(first)
        if rest.strip() or len(first) > 300:
            cut = escape(first if len(first) <= 300 else f"{first[:297]}...")
            shown = f"<details><summary>{cut}</summary><pre>{escape(reason[:20_000])}</pre></details>"
        numbers = spans(trial.number for trial in group)
        rows.append([f"<td>{len(group)}</td>", f'<td class="words">{shown}</td>', f'<td class="words">{numbers}</td>'])
    caption = "Why trials failed. Reasons that differ in numbers alone are one."
    return _table(["trials", "reason", "which"], rows, caption=caption) if rows else ""


def _reason(trial: TrialRecord) -> str:
    return trial.reason.strip() or "no reason was recorded"


def everything(
    order: Sequence[TrialRecord],
    *,
    objectives: Sequence[Objective],
    params: Sequence[str],
    front: Sequence[int],
    constrained: bool,
) -> str:
    """Return the table of all trials in the order given; past ``MAX_ROWS`` of them it says how many there are.

    ``front`` are the numbers of the trials that none other beats, of several objectives; ``constrained`` says whether
    the sweep has constraints, which get a column.
    """
    head = ["trial", "state", *(objective.metric for objective in objectives), "epochs", "duration"]
    head += ["beaten"] if len(objectives) > 1 else []
    head += ["constraints"] if constrained else []
    rows = []
    for trial in order[:MAX_ROWS]:
        cells = [_number(trial), f"<td>{WORDS[trial.status]}</td>"]
        cells += [_value(value) for value in _values(trial, objectives)]
        cells += [_cell(str(trial.epochs)), _duration(trial)]
        if len(objectives) > 1:
            beaten = "by none" if trial.number in front else "yes"
            cells.append(_cell(beaten) if trial.status == "complete" and trial.feasible else _dash())
        if constrained:
            cells.append(f"<td>{'kept' if trial.feasible else 'broken'}</td>" if trial.value is not None else _dash())
        cells += [
            f"<td>{_text(trial.params[name])}</td>" if name in trial.params else _dash("not set") for name in params
        ]
        rows.append(cells)
    caption = "All trials, best first."
    if len(order) > MAX_ROWS:
        caption = f"The best {MAX_ROWS:,} of {len(order):,} trials; the Optuna study and MLflow hold all of them."
    return _table([*head, *map(short, params)], rows, caption=caption, sortable=True)


def spans(numbers: Iterable[int], *, at_most: int = 60) -> str:
    """Write numbers as ``0 to 4, 7``; past ``at_most`` spans, how many more there are."""
    runs = []
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        if len(members) > 2:
            runs.append((f"{members[0]} to {members[-1]}", len(members)))
        else:
            runs += [(str(number), 1) for number in members]
    text = ", ".join(words for words, _ in runs[:at_most])
    more = sum(count for _, count in runs[at_most:])
    return f"{text} and {more:,} more" if more else text


def seconds(duration_s: float) -> str:
    """Write a duration with the two units that matter."""
    if duration_s < 60:
        return f"{duration_s:.3g} s"
    whole = round(duration_s)
    for size, unit, next_size, next_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // next_size
            return f"{whole // size:,} {unit}" + (f" {rest} {next_unit}" if rest else "")
    return f"{whole} s"


def _values(trial: TrialRecord, objectives: Sequence[Objective]) -> list[float | None]:
    if len(trial.values) == len(objectives):
        return list(trial.values)
    return [trial.value, *[trial.metrics.get(objective.metric) for objective in objectives[1:]]]


def _number(trial: TrialRecord) -> str:
    came = f' <small title="known from another sweep">from {escape(trial.carried_from)}</small>'
    return f'<th scope="row" data-value="{trial.number}">{trial.number}{came if trial.carried_from else ""}</th>'


def _value(value: float | None) -> str:
    return _dash() if value is None else f'<td data-value="{value!r}">{_text(float(value))}</td>'


def _difference(value: float | None, best: float | None) -> str:
    return _dash() if value is None or best is None else f"<td>{value - best:+.3g}</td>".replace("-", "−")


def _duration(trial: TrialRecord) -> str:
    return f'<td data-value="{trial.duration_s!r}">{seconds(trial.duration_s)}</td>'


def _cell(text: str) -> str:
    return f"<td>{text}</td>"


def _dash(title: str = "") -> str:
    return f'<td data-value=""{f" title={title!r}" if title else ""}>–</td>'


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.6g}" if isinstance(value, float) else escape(str(value))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, sortable: bool = False) -> str:
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    kind = ' class="sortable"' if sortable else ""
    note = escape(caption)
    return (
        f'<p class="note">{note}</p>\n<div class="wide" role="region" tabindex="0" aria-label="{note}">'
        f"<table{kind}><thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )
