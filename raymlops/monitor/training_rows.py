"""Which labelled rows of the prediction log a model is retrained on, and which are left out, with their numbers. Pure.

Rows are split by time: the oldest are trained on, then some validate, and the newest test. What was labelled only after
the first test row was asked is in neither of the first two parts: on the day on which a model of these rows could have
begun to answer, nobody knew it. And what was labelled before the last of these labels, such as by a clock that is
behind, tests nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raymlops.errors import DataRefusedError
from raymlops.monitor.skill.label_coverage import coverage
from raymlops.predictions.labelled_rows import admit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.predictions.labelled_rows import Rows

    Floats = npt.NDArray[np.float64]
    Flags = npt.NDArray[np.bool_]
    Places = npt.NDArray[np.int64]

TEST = 0.2
"""Share of the labelled rows, the newest ones, that test."""
VALIDATION = 0.125
"""Share of the others, likewise, that validate."""
FEWEST = 30
"""Rows of each part."""
_HOUR = 3600.0
_MICROSECONDS = 1e6
"""Of a second: times are written so with the tables."""
_WHOLE = 0.99
"""Share of rows with a label from which on the others are not worth a word."""


@dataclass(frozen=True)
class Fault:
    """A span in which what was served is known to have been broken."""

    name: str
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class ChosenRows:
    """The rows of each part, by their places, in order of time."""

    parts: Mapping[str, Places]
    numbers: Mapping[str, Any]
    notes: tuple[str, ...]


def choose(
    rows: Rows,
    *,
    unseen: Flags,
    stop_s: float,
    faults: Sequence[Fault],
    min_coverage: float,
    max_caller_share: float | None,
) -> ChosenRows:
    """Return which rows are trained on, validate and test. Labels from ``stop_s`` on are not there yet.

    ``rows`` are what ``labelled_rows`` says of rows of the log, each once; ``unseen`` those whose label is of a class
    that the champion's test rows have none of.

    Raises:
        DataRefusedError: there are too few rows, too few of them have a label, too many labels do not count, or there
            are too few callers for the bound.
    """
    if not len(rows):
        raise DataRefusedError("the prediction log has no row of the window", hint=_WIDER)
    sound, notes = _sound(rows, faults)
    known = rows["received"] < stop_s  # NaN is not
    labelled = np.flatnonzero(sound & known)
    share = _share(rows["asked"][sound], np.where(known, rows["received"], np.nan)[sound], stop_s)
    numbers: dict[str, Any] = {
        "rows": len(rows),
        "labelled": int(known.sum()),
        "coverage": round(share, 4),
        "of_faults": int((~sound).sum()),
    }
    if share < min_coverage or not len(labelled):
        raise DataRefusedError(
            f"{share:.1%} of the {int(sound.sum()):,} rows in the log get a label, and retrain.min_coverage is "
            f"{min_coverage:g}: {len(labelled):,} have one",
            hint="Send labels of more rows: those that have one say little of the others. Or lower the bound.",
        )
    if share < _WHOLE:
        notes.append(f"{1 - share:.1%} of the rows get no label, and the model is trained on nothing like them")
    found = admit(rows.where(labelled), most=max_caller_share, seen=~unseen[labelled])
    if found.refused:
        raise DataRefusedError(found.refused, hint=_ITS_LABELS)
    notes += [found.note] if found.note else []
    callers = np.unique(rows["callers"][labelled].astype(str))
    if len(callers) == 1:  # there is nobody else to believe
        notes.append(f"all labels are of one caller: {callers[0] or 'without a key'}")
    labelled = labelled[found.rows]
    numbers |= {"do_not_count": sum(found.left_out.values()), "kept": len(labelled)}
    return ChosenRows(_split(rows, labelled, numbers, notes), numbers, tuple(notes))


def _sound(rows: Rows, faults: Sequence[Fault]) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Return which rows were not asked during a fault."""
    sound, notes = np.ones(len(rows), dtype=np.bool_), []
    for fault in faults:
        within = (rows["asked"] >= fault.start_s) & (rows["asked"] < fault.stop_s)
        if count := int((within & sound).sum()):
            hours = (fault.stop_s - fault.start_s) / _HOUR
            notes.append(f"{count:,} rows of {hours:,.0f} h are left out: what was served was broken ({fault.name})")
        sound &= ~within
    return sound, notes


def _share(asked: Floats, labelled: Floats, stop_s: float) -> float:
    """Return the share of rows that get a label, those counted in that are too young to have theirs."""
    if not len(asked):
        return 0.0
    oldest = float(stop_s - asked.min())
    found = coverage(asked, labelled, now=stop_s, ages_s=(oldest,)).shares[0]
    return 0.0 if np.isnan(found) else float(found)


def _split(rows: Rows, labelled: Places, numbers: dict[str, Any], notes: list[str]) -> dict[str, Places]:
    """Return the parts by time, and say what was known too late to train on, or too early to test."""
    ordered = labelled[np.argsort(rows["asked"][labelled], kind="stable")]
    asked, known = rows["asked"][ordered], np.rint(rows["known_at"][ordered] * _MICROSECONDS)
    begins = _at(asked, 1 - TEST)
    before = asked < begins
    in_time = before & (rows["known_at"][ordered] < begins)
    tests = ~before & (known > known[in_time].max(initial=-np.inf))
    validates = _at(asked[in_time], 1 - VALIDATION)
    parts = {
        "train": ordered[in_time & (asked < validates)],
        "validation": ordered[in_time & (asked >= validates)],
        "test": ordered[tests],
    }
    late = int(before.sum() - in_time.sum())
    if late:
        notes.append(f"{late:,} rows are left out whose label came in after the first test row was asked")
    early = int((~before).sum() - tests.sum())
    if early:
        notes.append(f"{early:,} rows are left out of the test whose label came in before the last one of the others")
    numbers |= {part: len(places) for part, places in parts.items()} | {"known_late": late, "known_early": early}
    if few := {part: len(places) for part, places in parts.items() if len(places) < FEWEST}:
        told = ", ".join(f"{count:,} for {part}" for part, count in few.items())
        raise DataRefusedError(
            f"of {len(labelled):,} labelled rows there are {told}, and {FEWEST} are needed; the label of {late:,} came "
            "in after the first test row was asked",
            hint=_WIDER,
        )
    return parts


def _at(asked: Floats, share: float) -> float:
    """Return when the row at a share of rows in order of time was asked: rows of one time stay together."""
    return float(asked[int(share * len(asked))]) if len(asked) else -np.inf


_ITS_LABELS = (
    "Look at who sends them first: a correction settles what is contradicted. Raise retrain.max_caller_share for a key "
    "that may send more. Of classes that are new, train on your own store: retrain.data: recipe, with datasets(window)."
)
_WIDER = "Widen retrain.window.days, or wait for more labels."
