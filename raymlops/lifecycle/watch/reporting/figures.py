"""The figures of a drift report as numbers: where each line, bar and tick is. Pure; ``drift.html.jinja`` draws them."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from raymlops.lifecycle.watch.window_drift import cut
from raymlops.monitor.contrasts import in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from raymlops.lifecycle.watch.hours import HourlyColumn
    from raymlops.lifecycle.watch.window_drift import WindowDrift
    from raymlops.monitor.effects import Histogram

    Point = tuple[float, float]
    Scale = Callable[[float], float]

WIDTH, LEFT, RIGHT = 720, 60, 12
"""Of a figure, and of its margins, in the units of its drawing."""
TOP, BOTTOM, BELOW = 8, 104, 22
"""Where the plot of a figure begins and ends, and the room for the ticks below it."""
HEIGHTS = {"ok": 8, "warn": 17, "alarm": 26}
"""Of windows in a strip, so that outcomes are told apart without colors too."""
_HOUR = timedelta(hours=1)
_MOST_TICKS = 7
_STEPS_H = (1, 3, 6, 12, 24, 48, 96, 168, 336, 672, 1344, 2688)
CUT = 160
"""The longest sentence that is shown."""


class Tick(NamedTuple):
    """A mark on an axis."""

    at: float
    text: str


class Mark(NamedTuple):
    """One window: a bar of a strip, or a point among distances, which has no size."""

    x: float
    y: float
    kind: str
    title: str
    width: float = 0
    height: float = 0


class Figure(NamedTuple):
    """What is drawn."""

    title: str
    height: int
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick] = ()
    marks: Sequence[Mark] = ()
    line: str = ""
    """The path of what is now."""
    area: str = ""
    """The path of an area below it."""
    band: tuple[float, float] | None = None
    """Of y, over the whole width."""
    limits: Sequence[float] = ()
    """Dashed lines, at y."""
    shade: tuple[float, float] | None = None
    """Of x, over the whole height."""


class Times:
    """An axis of time."""

    def __init__(self, start: datetime, stop: datetime) -> None:
        self._start, self._stop = start, max(stop, start + _HOUR)

    @classmethod
    def of(cls, windows: Iterable[WindowDrift]) -> Times | None:
        """Return the axis from the first window to the end of the last one; None where none has begun."""
        spans = [(one.start, one.stop) for one in windows if one.start is not None and one.stop is not None]
        return cls(min(start for start, _ in spans), max(stop for _, stop in spans)) if spans else None

    def x(self, moment: datetime) -> float:
        """Return where a moment is."""
        share = (moment - self._start) / (self._stop - self._start)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def ticks(self) -> list[Tick]:
        """Return at most 8 ticks, at whole hours or days."""
        hours = (self._stop - self._start) / _HOUR
        most = math.ceil(hours / _MOST_TICKS / 24) * 24
        step = next((one for one in _STEPS_H if hours / one <= _MOST_TICKS), most) * _HOUR
        form = "%m-%d" if step >= 24 * _HOUR else "%m-%d %H:%M"
        day = datetime(self._start.year, self._start.month, self._start.day, tzinfo=UTC)
        first = day + math.ceil((self._start - day) / step) * step
        count = max(0, int((self._stop - first) / step) + 1)
        moments = [first + at * step for at in range(count)]
        return [Tick(self.x(one), f"{one:{form if at else f'%Y-{form}'}}") for at, one in enumerate(moments)]


def strip(windows: Sequence[WindowDrift], times: Times, *, title: str) -> Figure:
    """Return a bar for each window, the higher the worse, and a hollow one where nothing was judged."""
    base = TOP + max(HEIGHTS.values())
    marks = []
    for one in windows:
        if one.start is None or one.stop is None:
            continue
        kind = one.outcome if one.outcome in HEIGHTS else "none"
        height, x = HEIGHTS.get(kind, HEIGHTS["ok"]), times.x(one.start)
        why = one.waiting if one.verdict is None else one.verdict.reason
        about = f"{_when(one)}, {one.rows:,} rows: {one.outcome}: {cut(why, CUT)}"
        marks.append(Mark(x, base - height, kind, about, max(round(times.x(one.stop) - x - 1, 1), 1.5), height))
    return Figure(title, base + BELOW, times.ticks(), marks=marks)


def distances(column: str, windows: Sequence[WindowDrift], times: Times) -> Figure:
    """Return how far a column was off in each window, in what of it moved most, beside the band of own windows."""
    seen = [
        (one, found)
        for one in windows
        for found in (one.verdict.columns if one.verdict else ())
        if found.column == column
    ]
    verdicts = [one.verdict for one, _ in seen if one.verdict is not None]
    band = next((found.band for found in reversed(verdicts) if found.band is not None), None)
    running = next((found.band_running for found in reversed(verdicts) if found.band_running is not None), None)
    most = max([abs(found.distance) for _, found in seen], default=0.0)
    y = _bent(max(most, band or 1.0) * 1.15)
    marks = [
        Mark(
            round((times.x(one.start) + times.x(one.stop)) / 2, 1),
            y(abs(found.distance)),
            "alarm" if found.flagged else "ok",
            f"{_when(one)}: {in_words(found.moved)}, {found.distance:+.2f} sd",
        )
        for one, found in seen
        if one.start is not None and one.stop is not None
    ]
    numbers = {0.0, band or 1.0, *((most,) if most > 2 * (band or 1.0) else ())}
    return Figure(
        column,
        BOTTOM + BELOW,
        times.ticks(),
        [Tick(y(value), f"{value:.3g}") for value in sorted(numbers)],
        marks,
        path((mark.x, mark.y) for mark in marks),
        band=None if band is None else (y(band), y(0)),
        limits=() if running is None else (y(running),),
    )


def bars(histogram: Histogram) -> Figure:
    """Return the shares of intervals: those before as an area, those after as a line."""
    low, high = histogram.edges[0], histogram.edges[-1]
    top = max(*histogram.before, *histogram.after) * 1.08
    x, y = linear(low, high, LEFT, WIDTH - RIGHT), linear(0, top, BOTTOM, TOP)

    def steps(shares: Sequence[float]) -> str:
        places = zip(histogram.edges, histogram.edges[1:], shares, strict=False)
        points = [(x(edge), y(share)) for *edges, share in places for edge in edges]
        return path([(LEFT, BOTTOM), *points, (WIDTH - RIGHT, BOTTOM)])

    return Figure(
        "share of rows by value: before grey, after orange",
        BOTTOM + BELOW,
        [Tick(x(value), f"{value:.6g}") for value in round_numbers(low, high, count=_MOST_TICKS)],
        [Tick(y(share), f"{100 * share:.3g}%") for share in round_numbers(0, top, count=3)],
        line=steps(histogram.after),
        area=steps(histogram.before),
    )


def hourly(column: HourlyColumn, window: WindowDrift) -> Figure:
    """Return a column hour by hour, the window shaded: the median between quartiles, or a share."""
    assert window.start is not None
    assert window.stop is not None
    times = Times(min(column.starts[0], window.start), window.stop)
    by_hour = [
        (start, values)
        for start, values in zip(column.starts, column.values, strict=True)
        if all(map(math.isfinite, values))
    ]
    is_share = column.what != "quartiles"
    numbers = [value for _, values in by_hour for value in values] or [0.0]
    low, high = 0.0 if is_share else min(numbers), max(numbers)
    y = linear(low, high, BOTTOM, TOP)
    runs: list[list[tuple[float, list[float]]]] = []
    for at, (start, values) in enumerate(by_hour):
        if not at or start - by_hour[at - 1][0] > _HOUR:
            runs.append([])
        runs[-1].append((times.x(start + _HOUR / 2), [y(value) for value in values]))
    ticks = round_numbers(low, high, count=3)
    return Figure(
        f"{'median and quartiles' if not is_share else column.what} by the hour",
        BOTTOM + BELOW,
        times.ticks(),
        [Tick(y(value), f"{100 * value:.3g}%" if is_share else f"{value:.6g}") for value in ticks],
        line=" ".join(path((x, ys[len(ys) // 2]) for x, ys in run) for run in runs),
        area=""
        if is_share
        else " ".join(path([*((x, ys[0]) for x, ys in run), *((x, ys[2]) for x, ys in reversed(run))]) for run in runs),
        shade=(times.x(window.start), times.x(window.stop)),
    )


def _when(window: WindowDrift) -> str:
    return "" if window.start is None else f"{window.start:%Y-%m-%d %H:%M} UTC"


def path(points: Iterable[Point]) -> str:
    """Return the path through points; of one, a dot."""
    found = [f"{x:g} {y:g}" for x, y in points]
    if len(found) == 1:
        found += found
    return f"M{'L'.join(found)}" if found else ""


def linear(low: float, high: float, first: float, last: float) -> Scale:
    """Return a scale that has ``low`` at ``first`` and ``high`` at ``last``."""
    span = high - low or 1.0
    return lambda value: round(first + (value - low) / span * (last - first), 1)


def _bent(most: float) -> Scale:
    """Return a scale from 0 that leaves small numbers apart where one is large."""
    straight = linear(0, math.asinh(most), BOTTOM, TOP)
    return lambda value: straight(math.asinh(value))


def round_numbers(low: float, high: float, *, count: int) -> list[float]:
    """Return about ``count`` round numbers from low to high."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * one for one in (1, 2, 5, 10) if power * one >= rough)
    return [at * step for at in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
