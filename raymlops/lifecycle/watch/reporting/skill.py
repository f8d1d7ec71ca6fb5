"""What a report shows of a version's quality by its labels: skill lost over time, and its windows. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from raymlops.lifecycle.watch.reporting import figures
from raymlops.lifecycle.watch.window_drift import cut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.lifecycle.watch.reporting.figures import Figure, Times
    from raymlops.state.watch.windows import JudgedWindow

HEAD = ("window", "outcome", "skill", "as it was", "lost", "between", "labelled rows", "half within", "why")
MOST_ROWS = 30
_LINE = 200


class Skill(NamedTuple):
    """What is shown of it."""

    outcome: str
    text: str
    figures: Sequence[Figure]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    slices: Sequence[str]


def skill(windows: Sequence[JudgedWindow]) -> Skill | None:
    """Return what is shown of windows, the oldest first; None without any."""
    if not windows:
        return None
    newest = windows[-1]
    verdict = newest.details["verdict"]
    times = figures.Times(windows[0].start, newest.stop)
    measured = [one for one in windows if one.details.get("skill") is not None]
    drawn = [_lost(measured, times), _skills(measured, times)] if len(measured) > 1 else []
    slices = [
        f"{cut(one['name'], _LINE)}: skill {one['skill']:.3f}, {one['expected']:.3f} as it was (p {one['p']:.2g})"
        for one in newest.details["slices"]
        if one["flagged"]
    ]
    rows = [_row(one) for one in reversed(windows[-MOST_ROWS:])]
    said = (
        f"{verdict['outcome']} since the promotion, by labels until {newest.stop:%Y-%m-%d %H:%M} UTC: {newest.reason}"
    )
    return Skill(newest.outcome, cut(said, 600), drawn, HEAD, rows, slices)


def _lost(windows: Sequence[JudgedWindow], times: Times) -> Figure:
    """Return the skill that was lost in each window, between bounds at 95%."""
    found = [
        (one, _of(one, "expected_skill") - _of(one, "skill"), _of(one, "low"), _of(one, "high")) for one in windows
    ]
    ends = [end for _, _, low, high in found for end in (low, high)] + [0.0]
    y = figures.linear(min(ends), max(ends), figures.BOTTOM, figures.TOP)
    at = {one.start: _middle(one, times) for one in windows}
    upper = [(at[one.start], y(high)) for one, _, _, high in found]
    lower = [(at[one.start], y(low)) for one, _, low, _ in reversed(found)]
    marks = [
        figures.Mark(
            at[one.start],
            y(lost),
            one.outcome if one.outcome in figures.HEIGHTS else "none",
            f"{one.start:%Y-%m-%d %H:%M} UTC: {lost:+.3f} ({low:+.3f} to {high:+.3f}): {one.outcome}",
        )
        for one, lost, low, high in found
    ]
    return figures.Figure(
        "skill lost in each window against the same labels of the test rows, with its interval at 95%",
        figures.BOTTOM + figures.BELOW,
        times.ticks(),
        [figures.Tick(y(value), f"{value:.3g}") for value in figures.round_numbers(min(ends), max(ends), count=3)],
        marks,
        figures.path((mark.x, mark.y) for mark in marks),
        area=figures.path([*upper, *lower]),
        limits=(y(0.0),),
    )


def _skills(windows: Sequence[JudgedWindow], times: Times) -> Figure:
    """Return the skill of each window as a line, and as it was on the test rows as dots."""
    numbers = [_of(one, key) for one in windows for key in ("skill", "expected_skill")]
    y = figures.linear(min(numbers), max(numbers), figures.BOTTOM, figures.TOP)
    points = [(_middle(one, times), y(_of(one, "skill"))) for one in windows]
    marks = [
        figures.Mark(
            _middle(one, times), y(_of(one, "expected_skill")), "none", f"as it was {_of(one, 'expected_skill'):.3f}"
        )
        for one in windows
    ]
    return figures.Figure(
        "skill of each window (line), and had the model stayed as it was (dots)",
        figures.BOTTOM + figures.BELOW,
        times.ticks(),
        [
            figures.Tick(y(value), f"{value:.3g}")
            for value in figures.round_numbers(min(numbers), max(numbers), count=3)
        ],
        marks,
        figures.path(points),
    )


def _row(window: JudgedWindow) -> list[str]:
    details, coverage = window.details, window.details["coverage"]
    span = f"{window.start:%Y-%m-%d %H:%M} to {window.stop:%Y-%m-%d %H:%M}"
    numbers = [""] * 4
    if details.get("skill") is not None:
        lost = details["expected_skill"] - details["skill"]
        numbers = [f"{details['skill']:.3f}", f"{details['expected_skill']:.3f}", f"{lost:+.3f}"]
        numbers.append(f"{_of(window, 'low'):+.3f} to {_of(window, 'high'):+.3f}")
    half = coverage["half_lag_s"]
    labelled = f"{window.rows:,} of {details['answered']:,}"
    lag = "" if half is None else f"{half / 3600:.3g} h"
    return [span, window.outcome, *numbers, labelled, lag, cut(window.reason, _LINE)]


def _of(window: JudgedWindow, key: str) -> float:
    """Return a number of a window; bounds that nothing bounds are those of skill itself."""
    found: Any = window.details.get(key)
    return float(found) if found is not None else {"low": -1.0, "high": 1.0}[key]


def _middle(window: JudgedWindow, times: Times) -> float:
    return round((times.x(window.start) + times.x(window.stop)) / 2, 1)
