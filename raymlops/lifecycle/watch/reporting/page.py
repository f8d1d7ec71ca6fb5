"""The report of a model's drift: one HTML file with what its windows of traffic showed, readable offline.

Owns the page's content and its bounds: however many columns and windows there are, it stays below a megabyte. It runs
no script. ``*.html.jinja`` are the page and its part that a notebook shows, in which every text is escaped; ``figures``
says where lines and bars are. Knows nothing of where verdicts come from, nor of where the file goes.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from raymlops.lifecycle.watch.reporting import figures
from raymlops.lifecycle.watch.reporting.figures import CUT
from raymlops.lifecycle.watch.reporting.skill import skill
from raymlops.lifecycle.watch.window_drift import cut
from raymlops.monitor.contrasts import NULLS, in_words
from raymlops.monitor.effects import QUANTILES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from jinja2 import Environment

    from raymlops.lifecycle.watch.hours import HourlyColumn
    from raymlops.lifecycle.watch.reporting.figures import Figure, Times
    from raymlops.lifecycle.watch.window_drift import WindowDrift
    from raymlops.monitor.drift import ColumnDrift
    from raymlops.monitor.effects import Histogram
    from raymlops.state.watch.incidents import Incident
    from raymlops.state.watch.windows import JudgedWindow

MOST_WINDOWS = 120
"""Of a side, the newest ones."""
MOST_LINES, MOST_COLUMNS, MOST_ROWS = 8, 8, 100
"""Columns whose distances are drawn, that are shown before and after, and in the table, of a side."""
_MOST_WHYS, MOST_INCIDENTS = 5, 20
_KEY = "a bar for each window, low where it is ok, higher for a warning, highest for an alarm, hollow without a verdict"
_CELL, _LINE = 60, 400
_TITLES = {
    ("inputs", "drift"): "Inputs",
    ("outputs", "drift"): "Outputs",
    ("inputs", "skew"): "Inputs, skew",
    ("outputs", "skew"): "Outputs, skew",
    ("inputs", "quality"): "Inputs, beyond a bound",
    ("inputs", "silence"): "Inputs, silence",
    ("outputs", "skill"): "Answers, worse by their labels",
}
_QUANTILES = ("5%", "25%", "50%", "75%", "95%")


class Shown(NamedTuple):
    """What a report is of."""

    name: str
    version: int
    window_h: float
    windows: Sequence[WindowDrift]
    """The oldest first within a side."""
    hours: Sequence[HourlyColumn] = ()
    incidents: Sequence[Incident] = ()
    """The newest first."""
    quality: Sequence[str] = ()
    """A line for each window, the oldest first, and then what is beyond its bound."""
    notes: Sequence[str] = ()
    skill: Sequence[JudgedWindow] = ()
    """Of the champion's labelled answers, the oldest first."""


class _Outcome(NamedTuple):
    title: str
    outcome: str
    text: str


class _Column(NamedTuple):
    title: str
    sentence: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Figure | None
    categories: Sequence[tuple[str, float, float]]
    hours: Figure | None
    notes: Sequence[str]


class _Side(NamedTuple):
    """What is shown of one side's drift, or of its skew."""

    anchor: str
    title: str
    strip: Figure | None
    lines: Sequence[Figure]
    moved: str
    columns: Sequence[_Column]
    table: Sequence[Sequence[str]]
    table_note: str


def page(shown: Shown, *, made_at: datetime) -> str:
    """Return the report as one self-contained HTML file, with the time at which it is written."""
    incidents = [_incident(one) for one in shown.incidents[:MOST_INCIDENTS]]
    texts = _contents(shown)
    facts = _facts(shown, made_at=made_at)
    return _templates().get_template("page.html.jinja").render(facts=facts, incidents=incidents, **texts)


def fragment(shown: Shown) -> str:
    """Return what a notebook shows, with styles that reach nothing else there."""
    return _templates().get_template("fragment.html.jinja").render(**_contents(shown))


def _contents(shown: Shown) -> dict[str, Any]:
    by_side = {key: [one for one in shown.windows if (one.side, one.kind) == key][-MOST_WINDOWS:] for key in _TITLES}
    by_side = {key: found for key, found in by_side.items() if found}
    times = figures.Times.of(one for (_, kind), found in by_side.items() if kind == "drift" for one in found)
    return {
        "name": shown.name,
        "version": shown.version,
        "window_h": f"{shown.window_h:g}",
        "outcomes": [_outcome(_TITLES[key], found) for key, found in by_side.items()],
        "sides": [_side(key, found, times, shown.hours) for key, found in by_side.items()],
        "quality": [cut(line.removeprefix("data, "), _LINE) for line in reversed(shown.quality[-MOST_ROWS:])],
        "left_out": [*_left_out(by_side.values()), *shown.notes],
        "skill": skill(shown.skill[-MOST_WINDOWS:]),
    }


def _incident(incident: Incident) -> list[str]:
    state = "open" if incident.closed_at is None else f"closed {incident.closed_at:%Y-%m-%d %H:%M}"
    if incident.acknowledged_at is not None:
        by, why = cut(incident.acknowledged_by or "", _CELL), cut(incident.acknowledged_why or "", CUT)
        what = "known" if incident.closed_at is None else "acknowledged"
        state += f", {what} {incident.acknowledged_at:%Y-%m-%d %H:%M} by {by}: {why}"
    return [
        incident.id,
        _TITLES[incident.side, incident.kind],
        f"{incident.opened_at:%Y-%m-%d %H:%M}",
        f"{incident.last_at:%Y-%m-%d %H:%M}",
        f"{incident.windows:,}",
        cut(incident.column, _CELL),
        state,
    ]


def _facts(shown: Shown, *, made_at: datetime) -> list[tuple[str, str]]:
    judged = [one for one in shown.windows if one.kind == "drift" and one.start is not None]
    facts = [("Champion", f"version {shown.version}"), ("Window", f"{shown.window_h:g} h")]
    if judged:
        counts = Counter(one.outcome for one in judged)
        facts += [
            ("Newest window", _span(judged[-1])),
            ("Windows", ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())),
        ]
    return [*facts, ("Written", f"{made_at:%Y-%m-%d %H:%M} UTC")]


def _outcome(title: str, windows: Sequence[WindowDrift]) -> _Outcome:
    """Return the newest verdict, and what the newest window waits for."""
    newest, shown = windows[-1], _judged(windows) or windows[-1]
    text = _said(shown) if shown is newest else f"{_said(shown)}. Since then {newest.outcome}: {_said(newest)}"
    return _Outcome(title, shown.outcome, text)


def _said(window: WindowDrift) -> str:
    why = window.waiting if window.verdict is None else window.verdict.reason
    where = "" if window.start is None else f"{_span(window)}, {window.rows:,} rows"
    against = f", against {window.against}" if window.against else ""
    acknowledged = ", acknowledged" if window.acknowledged else ""
    return cut(f"{where}{against}{acknowledged}: {why}".removeprefix(": "), 600)


def _judged(windows: Sequence[WindowDrift]) -> WindowDrift | None:
    """Return the newest window that has a verdict."""
    return next((one for one in reversed(windows) if one.verdict is not None), None)


def _side(
    key: tuple[str, str], windows: Sequence[WindowDrift], times: Times | None, hours: Sequence[HourlyColumn]
) -> _Side:
    side, kind = key
    flagged = next((one for one in reversed(windows) if one.verdict is not None and one.verdict.flagged), None)
    judged = _judged(windows)
    by_hour = {one.column: one for one in hours if one.side == side and kind == "drift"}
    times = times if len(windows) > 1 else None
    columns = [] if judged is None or judged.verdict is None else judged.verdict.columns
    shown = columns[:MOST_ROWS]
    left = len(columns) - len(shown)
    note = "" if judged is None else f"{_span(judged)}: what led to the verdict first, then by influence and distance."
    return _Side(
        f"{side}-{kind}",
        _TITLES[key],
        None if times is None else figures.strip(windows, times, title=f"{_TITLES[key]}: {_KEY}"),
        [] if times is None else [figures.distances(name, windows, times) for name in _telling(windows)],
        "" if flagged is None else f"{_span(flagged)}, {flagged.rows:,} rows, against {flagged.against}",
        [] if flagged is None else _moved(flagged, by_hour),
        [_row(column) for column in shown],
        note + (f" {left:,} more are in the answer to --json." if left else ""),
    )


def _telling(windows: Sequence[WindowDrift]) -> list[str]:
    """Return the columns whose distances are drawn: flagged most often, then by influence, then by distance."""
    weights: dict[str, tuple[int, float, float]] = {}
    for one in windows:
        for column in one.verdict.columns if one.verdict else ():
            times, influence, most = weights.get(column.column, (0, 0.0, 0.0))
            weights[column.column] = (
                times + column.flagged,
                column.influence or influence,
                max(most, abs(column.distance)),
            )
    return sorted(weights, key=lambda name: weights[name], reverse=True)[:MOST_LINES]


def _moved(window: WindowDrift, by_hour: dict[str, HourlyColumn]) -> list[_Column]:
    verdict = window.verdict
    assert verdict is not None
    return [
        _column(column, by_hour.get(column.column), window, band=verdict.band, running=verdict.band_running)
        for column in verdict.columns[:MOST_COLUMNS]
        if column.flagged
    ]


def _column(
    column: ColumnDrift, hours: HourlyColumn | None, window: WindowDrift, *, band: float | None, running: float | None
) -> _Column:
    sentence = f"{_moved_in(column)}: {column.distance:+.1f} standard deviations of own windows"
    if band is not None:
        sentence += f", of which one in twenty exceeds {band:.1f}"
    if column.distance_running is not None and running is not None and abs(column.distance_running) > running:
        sentence += f"; both of the last two windows reach {column.distance_running:+.1f}"
        sentence += f", one pair of own windows in 200 {running:.1f}"
    if column.influence is not None:
        sentence += f". The output's dependence on it is {column.influence:.2g} of at most 1"
    head, rows = ["missing"], [[_percent(share)] for share in column.nulls]
    if column.quantiles:
        head, rows = (
            [*_QUANTILES, *head],
            [[*side, *cells] for side, cells in zip(column.quantile_texts, rows, strict=True)],
        )
    notes = [
        f"{what}: {', '.join(cut(value, _CELL) for value in values[:10])}" + (", ..." if len(values) > 10 else "")
        for what, values in (("New", column.new), ("Vanished", column.vanished))
        if values
    ]
    if column.span and any(share >= QUANTILES[0] for side in column.outside for share in side):
        low, high = column.span
        notes.append(f"Figures show what is below {low:.4g} or above {high:.4g} at these edges: counts say no more")
    return _Column(
        cut(column.column, _CELL),
        f"{sentence}.",
        ["", *head],
        [["before", *rows[0]], ["after", *rows[1]]] if column.quantiles or any(column.nulls) else [],
        figures.bars(column.histogram) if column.histogram is not None and column.histogram.edges else None,
        [] if column.histogram is None else _categories(column.histogram),
        figures.hourly(hours, window) if hours is not None else None,
        notes,
    )


def _categories(histogram: Histogram) -> list[tuple[str, float, float]]:
    return [
        (cut(label, _CELL), before, after)
        for label, before, after in zip(histogram.labels, histogram.before, histogram.after, strict=False)
    ]


def _moved_in(column: ColumnDrift) -> str:
    return "missing values" if column.moved == NULLS else cut(in_words(column.moved), _CELL)


def _row(column: ColumnDrift) -> list[str]:
    medians = " → ".join(side[2] for side in column.quantile_texts)
    return [
        cut(column.column, _CELL),
        "yes" if column.flagged else "",
        _moved_in(column),
        f"{column.distance:+.1f}",
        f"{column.p:.2g}",
        f"{column.jensen_shannon:.3f}",
        medians,
        " → ".join(map(_percent, column.nulls)) if any(column.nulls) else "",
        "" if column.influence is None else f"{column.influence:.2g}",
    ]


def _left_out(sides: Iterable[Sequence[WindowDrift]]) -> list[str]:
    """Return what was not judged, and why: columns of the newest windows, and windows."""
    found: dict[str, None] = {}
    for windows in sides:
        newest = windows[-1]
        title = _TITLES[newest.side, newest.kind]
        for column, why in newest.refused.items():
            found[f"{title}: {cut(column, _CELL)}: {cut(why, CUT)}."] = None
        slips = [one.column for one in (newest.verdict.columns if newest.verdict else ()) if one.unjudged]
        if slips:
            names = cut(", ".join(cut(name, _CELL) for name in slips), _LINE)
            found[f"{title}: judged for slips alone, since they move within the reference: {names}."] = None
        whys = Counter(
            one.waiting if one.verdict is None else one.verdict.reason
            for one in windows
            if one.outcome in {"waiting", "insufficient"}
        )
        for why, count in whys.most_common(_MOST_WHYS):
            found[f"{title}: {count} window{'s' if count > 1 else ''}: {cut(why, _LINE)}."] = None
    return [*list(found)[:MOST_ROWS], *([f"{len(found) - MOST_ROWS:,} more."] if len(found) > MOST_ROWS else ())]


def _span(window: WindowDrift) -> str:
    return f"{window.start:%Y-%m-%d %H:%M} to {window.stop:%Y-%m-%d %H:%M} UTC" if window.start and window.stop else ""


def _percent(share: float) -> str:
    return f"{share:.1%}"


@functools.cache
def _templates() -> Environment:
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    # The page's own style is that of a sweep's report.
    loaders = [PackageLoader(f"raymlops.{package}.reporting", "") for package in ("lifecycle.watch", "tuning")]
    return Environment(loader=ChoiceLoader(loaders), autoescape=True, trim_blocks=True, lstrip_blocks=True)
