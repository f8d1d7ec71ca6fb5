"""What a challenger makes of requests that the champion has answered, and whether that keeps it back. Pure.

Requests of a log are not drawn by chance for one of both: the champion answered all of them. So an error of the
challenger is one that callers would have seen, and on labelled requests both answered the same rows. Other answers are
no fault by themselves, since a model is retrained to answer otherwise; beyond wide bounds they are more likely a
defect, such as exchanged classes, other units or a constant:

- the answers lie elsewhere, on bins that are as few as rows allow (Jensen-Shannon distance), and numbers far away;
- some of one of both lie further outside the range of the other's than that is wide: in other units, or huge;
- different requests get one answer;
- different requests are ordered the other way round, where answers are numbers.

Twice the answers of a champion that reach down to 0 pass, twice or half of their spread, and a shift by one standard
deviation of normal ones: so much may be right after a change of the world.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raymlops.monitor.effects import displacement, grouped, jensen_shannon, quantiles, range_of, share_outside
from raymlops.monitor.profiled import shown_name
from raymlops.monitor.skill.labelled import paired
from raymlops.monitor.skill.verdict import LEVEL, MARGIN
from raymlops.predictions.labelled_rows import Rows, admit
from raymlops.records import GateCheck, GateDecision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from raymlops.answer_loss import AnswerLoss
    from raymlops.profiles.layout import Cells, Series
    from raymlops.profiles.profile import Profile

Floats = npt.NDArray[np.float64]
_NONE = np.zeros(0)

FEWEST_ROWS = 50
"""Below which distributions of answers are not compared."""
FEWEST_PAIRS = 50
"""Of consecutive rows, below which nothing is said of how they are told apart."""
BIN_ROWS, MOST_BINS = 10, 32
"""Rows of each of both that a bin has about, and how many bins of numbers there are at most."""
FEWEST_TIMED = 20
"""Batches below which nothing is said of how fast answers are, and a fifth of those that show a 99th percentile."""
QUICK_S = 0.001
"""Seconds a row up to which nobody calls an answer slow."""
MAX_FAILURES = 3
_DISTANCE, _SIZE = "answers as the champion's", "answers of the champion's size"
_NARROWEST = 8
"""Of the champion's range: a range is not taken for narrower than one part of so many."""


@dataclass(frozen=True)
class Bounds:
    """What keeps a challenger back."""

    max_failed: float = 0.001
    """Share of the champion's answered rows that it may not answer."""
    max_slower: float = 2.0
    """How many times as long it may take as the champion, in the same process."""
    max_flipped: float = 0.5
    """Share of rows whose decision may differ."""
    max_distance: float = 0.7
    """Of its answers' distribution from the champion's: the Jensen-Shannon distance, 0 to 1."""
    max_displaced: float = 0.4
    """Of the champion's range: up to there numbers are not too far away, whatever the distance of distributions."""
    max_far: float = 0.05
    """Share of the answers of one of both that may lie further outside the range of the other's than that is wide."""
    max_alike: float = 0.99
    """Share of requests told apart by the champion that may get one answer."""
    max_reversed: float = 0.75
    """Share of them that may be ordered the other way."""
    max_caller_share: float | None = None
    """Of the labels."""
    level: float = LEVEL
    margin: float = MARGIN


@dataclass(frozen=True)
class Neighbours:
    """Pairs of consecutive rows, as both tell them apart: whatever the scale of their answers."""

    apart: int = 0
    """Pairs that the champion gave different answers."""
    alike: int = 0
    """Of these, with one answer of the challenger."""
    ordered: int = 0
    """Pairs with different numbers of both."""
    reversed: int = 0
    """Of these, ordered the other way by the challenger."""

    def __add__(self, other: Neighbours) -> Neighbours:
        """Return those of both."""
        return Neighbours(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Replayed:
    """A challenger's answers to logged requests, in sums that add over pieces of the log; rows by their weights."""

    read: int = 0
    """Rows of the log."""
    rows: float = 0.0
    """What they stand for."""
    failed: float = 0.0
    """Of these, not answered."""
    failures: tuple[str, ...] = ()
    """Why, the first few."""
    compared: float = 0.0
    """Rows whose decision can be compared."""
    flipped: float = 0.0
    """Of these, with another decision."""
    seconds: Floats = field(default_factory=lambda: _NONE)
    """A row, of each batch that was timed."""
    champion_seconds: Floats = field(default_factory=lambda: _NONE)
    """The champion's for the same batches."""
    before: Profile | None = None
    """The champion's logged answers on its layout ``widened``; None where its bundle has no profile of answers."""
    after: Profile | None = None
    """The challenger's."""
    known: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """From where to where the champion's answers were when it was registered, of each series."""
    neighbours: Neighbours = field(default_factory=Neighbours)
    labelled: Rows = field(default_factory=Rows)
    """The losses of both, ``champion`` and ``challenger``, on labelled rows."""
    trained_on: int = 0
    """Labelled rows that are not among them, since the challenger may have been trained on them."""
    notes: tuple[str, ...] = ()

    def __add__(self, other: Replayed) -> Replayed:
        """Return both pieces as one."""
        return Replayed(
            read=self.read + other.read,
            rows=self.rows + other.rows,
            failed=self.failed + other.failed,
            failures=_few(self.failures + other.failures),
            compared=self.compared + other.compared,
            flipped=self.flipped + other.flipped,
            seconds=np.concatenate([self.seconds, other.seconds]),
            champion_seconds=np.concatenate([self.champion_seconds, other.champion_seconds]),
            before=_sum(self.before, other.before),
            after=_sum(self.after, other.after),
            known={**self.known, **other.known},
            neighbours=self.neighbours + other.neighbours,
            labelled=Rows.joined([self.labelled, other.labelled]),
            trained_on=self.trained_on + other.trained_on,
            notes=_few(self.notes + other.notes),
        )


def judge(replayed: Replayed, *, champion: int, bounds: Bounds | None = None) -> GateDecision:
    """Return whether a challenger passes, with all numbers; it does where nothing was logged, which a note says."""
    bounds = bounds or Bounds()
    if not replayed.read:
        return GateDecision(True, (), champion, ("No request was logged in these hours, so that none was replayed.",))
    checks, notes = [_answered(replayed, bounds)], [*replayed.notes]
    told_apart = _told_apart(replayed.neighbours, bounds)
    for found in (_quick(replayed, bounds), _flips(replayed, bounds), *_spread(replayed, bounds), *told_apart):
        if isinstance(found, str):
            notes.append(found)
        else:
            checks.append(found)
    labelled = _labelled(replayed, bounds)
    (notes if isinstance(labelled, str) else checks).append(labelled)  # type: ignore[arg-type]
    return GateDecision(all(check.passed for check in checks), tuple(checks), champion, tuple(notes))


def decisions(columns: Mapping[str, Any], rule: AnswerLoss) -> npt.NDArray[Any] | None:
    """Return what callers would decide by each answer: a class, or what is more likely; None of a number."""
    if rule.kind == "class" and rule.output is not None and rule.output in columns:
        return np.asarray(columns[rule.output])
    found = [np.asarray(columns[name]) for name in rule.probabilities if name in columns]
    if not found or any(array.dtype == object for array in found):
        return None
    if rule.kind == "probability":
        return np.asarray(found[0] >= 0.5)
    if rule.kind == "vector":
        table = found[0] if len(found) == 1 else np.stack(found, axis=1)
        return np.asarray(table.argmax(axis=1)) if table.ndim == 2 else None
    return None


def neighbours(before: Mapping[str, Any], after: Mapping[str, Any], rule: AnswerLoss) -> Neighbours:
    """Return how consecutive rows are told apart by the champion's answers and the challenger's.

    Numbers are ordered where the rule judges these.
    """
    apart, changed = _changes(before), _changes(after)
    found = Neighbours(apart=int(apart.sum()), alike=int((apart & ~changed).sum()))
    name = rule.output if rule.kind == "number" else None
    if name is None or name not in before or name not in after:
        return found
    steps = [np.sign(np.diff(np.asarray(side[name], np.float64))) for side in (before, after)]
    product = steps[0] * steps[1]
    return replace(found, ordered=int(np.count_nonzero(np.abs(product) > 0)), reversed=int((product < 0).sum()))


def known_ranges(profile: Profile) -> dict[str, tuple[float, float]]:
    """Return from where to where 98% of the answers are that a champion was registered with, of each series."""
    return {
        shown_name(series): range_of(profile.counts[cells][series.bins], series.bin_edges)
        for series, cells in profile.layout.placed()
        if series.is_ordered and len(series.edges)
    }


def _changes(columns: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Return which rows have another answer than the one before, in any column."""
    found = []
    for values in columns.values():
        array = np.asarray(values)
        if array.dtype == object:
            found.append(np.array([not _same(one, other) for one, other in pairwise(array)], dtype=np.bool_))
        else:
            flat = array.reshape(len(array), -1)
            found.append((flat[1:] != flat[:-1]).any(axis=1))
    return np.logical_or.reduce(found) if found else np.zeros(0, dtype=np.bool_)


def _same(one: Any, other: Any) -> bool:
    tensors = isinstance(one, np.ndarray) or isinstance(other, np.ndarray)
    return bool(np.array_equal(one, other) if tensors else one == other)


def _answered(replayed: Replayed, bounds: Bounds) -> GateCheck:
    share = replayed.failed / replayed.rows
    detail = f"{replayed.failed:,.0f} of {replayed.rows:,.0f} rows that the champion answered failed"
    return GateCheck(
        "answers logged requests",
        passed=share <= bounds.max_failed,
        got=share,
        allowed=f"<= {bounds.max_failed:g}",
        detail="; ".join([detail, *replayed.failures]),
    )


def _quick(replayed: Replayed, bounds: Bounds) -> GateCheck | str:
    """Compare medians, and 99th percentiles where enough batches show them."""
    ours, theirs = replayed.seconds, replayed.champion_seconds
    if len(ours) < FEWEST_TIMED:
        return f"Whether it is slower is not known: {len(ours)} batches were timed, {FEWEST_TIMED} are needed."
    at = [50, 99] if len(ours) >= 5 * FEWEST_TIMED else [50]
    both = list(zip(np.percentile(ours, at), np.percentile(theirs, at), strict=True))
    got = max(float(one / max(other, 1e-9)) if one > QUICK_S else 0.0 for one, other in both)
    words = (
        f"p{q} {1e3 * one:.3g} ms a row against {1e3 * other:.3g}" for q, (one, other) in zip(at, both, strict=True)
    )
    return GateCheck(
        "not slower than the champion",
        passed=got <= bounds.max_slower,
        got=got,
        allowed=f"<= {bounds.max_slower:g} times as long, or {1e3 * QUICK_S:g} ms a row",
        detail=f"{', '.join(words)}, in {len(ours):,} batches",
    )


def _flips(replayed: Replayed, bounds: Bounds) -> GateCheck | str:
    if not replayed.compared:
        return "Decisions are not compared: answers are numbers, or of a kind that only the recipe knows."
    share = replayed.flipped / replayed.compared
    detail = f"{replayed.flipped:,.0f} of {replayed.compared:,.0f} rows get another decision"
    return GateCheck("decides alike", share <= bounds.max_flipped, share, f"<= {bounds.max_flipped:g}", detail)


def _spread(replayed: Replayed, bounds: Bounds) -> Iterator[GateCheck | str]:
    """Compare where the answers of both lie, each output by itself; yield what is worst of each comparison."""
    before, after = replayed.before, replayed.after
    if before is None or after is None:
        yield "Distributions of answers are not compared: the champion's bundle has no profile of its answers."
        return
    rows = min(before.read, after.read)
    if rows < FEWEST_ROWS:
        yield f"Distributions of answers are not compared: {rows} rows say too little, {FEWEST_ROWS} are needed."
        return
    checks: list[GateCheck] = []
    for series, cells in before.layout.placed():
        if series.missing is None or series.measure == "time":
            continue
        theirs, ours = (profile.counts[cells] for profile in (before, after))
        checks.append(_distance(series, theirs, ours, bounds, rows=rows, known=replayed.known))
        if series.is_ordered and len(series.edges):
            checks += _sizes(series, theirs, ours, bounds, known=replayed.known)
    for name in (_DISTANCE, _SIZE):
        if found := [check for check in checks if check.name == name]:
            yield max(found, key=lambda check: (not check.passed, check.got or 0.0))


def _distance(
    series: Series, theirs: Cells, ours: Cells, bounds: Bounds, *, rows: int, known: Mapping[str, tuple[float, float]]
) -> GateCheck:
    """Compare the distributions of one series on few bins; numbers that are not displaced by much are alike."""
    groups, sides = rows // BIN_ROWS, (theirs[series.bins], ours[series.bins])
    few = grouped(*sides, groups=min(groups, MOST_BINS) if series.is_ordered else groups, ordered=series.is_ordered)
    rest = [np.append(side[: series.bins.start], side[series.bins.stop :]) for side in (theirs, ours)]
    distance = jensen_shannon(*(np.append(*both) for both in zip(few, rest, strict=True)))
    detail = f"{shown_name(series)}: Jensen-Shannon distance {distance:.3f} on {len(few[0])} bins"
    passed, allowed = distance <= bounds.max_distance, f"<= {bounds.max_distance:g}"
    if series.is_ordered and len(series.edges):
        edges = series.bin_edges
        low, high = _widest(range_of(sides[0], edges), known.get(shown_name(series)))
        moved = displacement(*sides, edges)
        there = (np.append(side.sum(), others) for side, others in zip(few, rest, strict=True))
        are_there = jensen_shannon(*there) <= bounds.max_distance  # missing ones are displaced by nothing
        passed |= are_there and moved <= bounds.max_displaced * (high - low)
        said = (" ".join(f"{value:.3g}" for value in quantiles(side, edges)) for side in sides)
        detail += (
            f"; displaced by {moved:.3g} on average, and the champion's range is {low:.3g} to {high:.3g}; quantiles at "
            f"5, 25, 50, 75 and 95%: champion's {', its own '.join(said)}"
        )
        allowed += f", or displaced by {bounds.max_displaced:g} of the range at most"
    return GateCheck(_DISTANCE, passed, distance, allowed, detail)


def _sizes(
    series: Series, theirs: Cells, ours: Cells, bounds: Bounds, *, known: Mapping[str, tuple[float, float]]
) -> Iterator[GateCheck]:
    """Look for answers of one of both that are far outside the range of the other's."""
    name, edges = shown_name(series), series.bin_edges
    before, after = theirs[series.bins], ours[series.bins]
    if not before.sum() or not after.sum():
        return
    low, high = whole = _widest(range_of(before, edges), known.get(name))
    least = (high - low) / _NARROWEST
    ways = (
        ("its answers", "the champion's range", after, whole),
        ("the champion's answers", "its own range", before, range_of(after, edges)),
    )
    for whose, what, side, (start, stop) in ways:
        width = max(stop - start, least)
        share = share_outside(side, edges, start - width, stop + width)
        yield GateCheck(
            _SIZE,
            passed=share <= bounds.max_far,
            got=share,
            allowed=f"<= {bounds.max_far:g}",
            detail=f"{name}: {share:.1%} of {whose} are further than {width:.3g} outside {what} of "
            f"{start:.3g} to {stop:.3g}",
        )


def _widest(one: tuple[float, float], other: tuple[float, float] | None) -> tuple[float, float]:
    """Return what covers both ranges; one that is not known is NaN or None."""
    found = np.array([one, one if other is None else other])
    return float(np.fmin(*found[:, 0])), float(np.fmax(*found[:, 1]))


def _told_apart(found: Neighbours, bounds: Bounds) -> Iterator[GateCheck]:
    if found.apart >= FEWEST_PAIRS:
        share = found.alike / found.apart
        detail = f"{found.alike:,} of {found.apart:,} pairs of rows to which the champion gave two answers get one"
        yield GateCheck("tells rows apart", share <= bounds.max_alike, share, f"<= {bounds.max_alike:g}", detail)
    if found.ordered >= FEWEST_PAIRS:
        share = found.reversed / found.ordered
        detail = f"{found.reversed:,} of {found.ordered:,} pairs of rows are ordered the other way"
        yield GateCheck("orders rows alike", share <= bounds.max_reversed, share, f"<= {bounds.max_reversed:g}", detail)


def _labelled(replayed: Replayed, bounds: Bounds) -> GateCheck | str:
    """Compare both on the same labelled rows; refused is one that is worse for certain."""
    known = replayed.trained_on
    trained_on = f"{known:,} labelled rows are left out, which it may have been trained on" if known else ""
    counts = admit(replayed.labelled, most=bounds.max_caller_share)
    if counts.refused:
        return f"Labelled requests are not compared: {counts.refused}."
    both = paired(replayed.labelled.where(counts.rows))
    if both is None:
        none = "No replayed request has a label, or the champion's answers to those that have one are perfect"
        return f"{none}; {trained_on}." if trained_on else f"{none}."
    outcome, why = both.compare(level=bounds.level, margin=bounds.margin)
    said = f"{outcome}: {why}, in units of the champion's mean loss" if "skill" in why else f"{outcome}: {why}"
    return GateCheck(
        "not worse on labelled requests",
        passed=outcome != "worse",
        got=float(np.nan_to_num(both.estimate().value)),
        allowed="not worse for certain",
        detail="; ".join(filter(None, (said.replace("of skill lost by", "lost by"), counts.note, trained_on))),
    )


def _sum(one: Profile | None, other: Profile | None) -> Profile | None:
    return one + other if one is not None and other is not None else one or other


def _few(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))[:MAX_FAILURES]
