"""What is to be said of one window of a model's traffic: a verdict, or why there is none; how that is kept. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from raymlops.display import table
from raymlops.monitor.contrasts import in_words
from raymlops.monitor.drift import ColumnDrift, DriftVerdict, together
from raymlops.monitor.effects import Histogram
from raymlops.monitor.outcome import FEWEST_ROWS
from raymlops.records import Record
from raymlops.state.watch.windows import JudgedWindow, about

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from raymlops.monitor.outcome import Outcome
    from raymlops.state.watch.windows import Kind, Side

SIDES: dict[Side, str] = {"inputs": "features", "outputs": "predictions"}
"""What a bundle and the log call them."""
FEW_ROWS = f"fewer than {FEWEST_ROWS} rows: take longer windows"
"""Why such a window has no verdict."""
KEPT_COLUMNS = 20
"""Of a verdict, the first ones, and as many of those that could not be judged."""
_KEPT_NAMES, _KEPT_TEXT = 5, 200
_SHOWN = 8
T = TypeVar("T")


@dataclass(frozen=True)
class WindowDrift(Record):
    """The verdict on one window, or why there is none."""

    side: Side
    kind: Kind
    """``skew`` is of the first windows that the version served, against training."""
    against: str | None
    start: datetime | None
    stop: datetime | None
    rows: int
    verdict: DriftVerdict | None
    waiting: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Columns that cannot be judged, and why."""
    acknowledged: bool = False
    """Whether a person said of all that it is an alarm for that it is normal, or known."""
    stand_for: int | None = None
    """How many rows were served; of a sampled log ``rows`` are as many as what was drawn says as much as."""

    @property
    def outcome(self) -> str:
        """Return ``ok``, ``warn``, ``alarm`` or ``insufficient``; ``waiting`` without a verdict."""
        return "waiting" if self.verdict is None else self.verdict.outcome

    @property
    def calm(self) -> dict[str, bool]:
        """Return of each column that was judged whether it was as near as all but one own window in twenty."""
        if self.verdict is None:
            return {}
        band = math.inf if self.verdict.band is None else self.verdict.band
        return {one.column: not one.flagged and abs(one.distance) <= band for one in self.verdict.columns}

    def text(self, *, without: Collection[str] = ()) -> str:
        """Return a line, and the columns that moved most where they lead to it.

        Of what could not be judged all are named but those that are told of elsewhere.
        """
        title = self.side if self.kind == "drift" else f"{self.side}, skew"
        if self.start is None or self.stop is None:
            return f"{title}: {self.waiting}"
        span = f"{self.start:%Y-%m-%d %H:%M} to {self.stop:%Y-%m-%d %H:%M} UTC, {self.rows:,} rows"
        if self.verdict is None:
            return f"{title}, {span}: {self.waiting}"
        outcome = f"{self.verdict.outcome}, acknowledged" if self.acknowledged else self.verdict.outcome
        line = f"{title}, {span}, against {self.against}: {outcome}: {self.verdict.reason}"
        refused = {name: why for name, why in self.refused.items() if name not in without}
        line += "".join(f"\n    {each}" for each in refused_lines(refused, "not judged"))
        moved = [column for column in self.verdict.columns if column.flagged][:_SHOWN]
        if not moved:
            return line
        rows = [
            {
                "column": column.column,
                "moved": in_words(column.moved),
                "influence": "" if column.influence is None else f"{column.influence:.2f}",
                "distance": f"{column.distance:+.1f}",
                "js": f"{column.jensen_shannon:.3f}" if column.quantiles or column.jensen_shannon else "",
                "median": " -> ".join(side[2] for side in column.quantile_texts),
                "missing": " -> ".join(f"{share:.1%}" for share in column.nulls if any(column.nulls)),
                "new": ", ".join(column.new[:3]),
                "vanished": ", ".join(column.vanished[:3]),
            }
            for column in moved
        ]
        shown = [name for name in rows[0] if any(row[name] for row in rows)]
        indented = table(rows, dict.fromkeys(shown)).replace("\n", "\n    ")
        return f"{line}\n    {indented}"


def refused_in_all(found: Iterable[WindowDrift]) -> dict[Side, dict[str, str]]:
    """Return by side what could be judged in none of several windows, for one reason, as slices of too few rows."""
    sides: dict[Side, list[Mapping[str, str]]] = {}
    for one in found:
        if one.verdict is not None:
            sides.setdefault(one.side, []).append(one.refused)
    return {
        side: {name: why for name, why in first.items() if all(each.get(name) == why for each in others)}
        for side, (first, *others) in sides.items()
        if others
    }


def refused_lines(refused: Mapping[str, str], what: str) -> list[str]:
    """Return what could not be judged in lines, the first ones of many."""
    lines = [f"{what}: {name}: {why}" for name, why in list(refused.items())[:_SHOWN]]
    return lines + ([f"{what}: {len(refused) - _SHOWN} more"] if len(refused) > _SHOWN else [])


def of_parts(found: Sequence[WindowDrift], *, spared: Sequence[bool]) -> WindowDrift:
    """Return the verdict on a window of those on parts of its columns, the worst.

    It is ``ok`` only where each part is, but for those that are ``spared``.
    """
    refused = {name: why for one in reversed(found) for name, why in one.refused.items()}
    judged = [one for one in reversed(found) if one.outcome not in {"waiting", "insufficient"}]
    lacking = [
        one
        for one, without in zip(found, spared, strict=True)
        if one.outcome in {"waiting", "insufficient"} and not without
    ]
    verdict = together([one.verdict for one in judged if one.verdict is not None]) if judged else None
    if verdict is None or (lacking and verdict.outcome == "ok"):
        return replace((lacking or found)[0], refused=refused)
    for one in lacking:
        if not one.refused:
            refused["the other columns"] = one.waiting if one.verdict is None else one.verdict.reason
    against = ", and ".join(one.against for one in judged if one.against is not None)
    return replace(judged[0], against=against, verdict=verdict, refused=refused)


def to_stored(found: WindowDrift, *, name: str, version: int, now: datetime) -> JudgedWindow:
    """Return a window as it is kept: judged by a champion's version, with the first columns alone.

    It has a start.
    """
    assert found.start is not None
    assert found.stop is not None
    verdict = found.verdict
    details = {} if verdict is None else {key: getattr(verdict, key) for key in _numbers(DriftVerdict)}
    columns = () if verdict is None else verdict.columns[:KEPT_COLUMNS]
    details |= {"columns": [_kept(column) for column in columns]}
    refused = list(found.refused.items())[:KEPT_COLUMNS]
    details |= {"refused": {cut(column): cut(why) for column, why in refused}}
    details |= {} if found.stand_for is None else {"stand_for": found.stand_for}
    return JudgedWindow(
        name,
        found.side,
        found.kind,
        version if found.kind == "skew" else about(found.side, version),
        found.start,
        found.stop,
        version,
        found.outcome,
        printable(found.waiting if verdict is None else verdict.reason)[:2000],
        found.rows,
        now,
        found.against,
        None if verdict is None else verdict.p_one,
        None if verdict is None else verdict.p_two,
        plain(details),
    )


def from_stored(window: JudgedWindow) -> WindowDrift:
    """Return a window as it was judged, with the columns that were kept."""
    verdict, details = None, window.details
    if window.outcome != "waiting":
        columns = tuple(_column(column) for column in details.get("columns", ()))
        numbers = {key: details.get(key) for key in _numbers(DriftVerdict)}
        given = {"outcome": cast("Outcome", window.outcome), "reason": window.reason, "rows": window.rows}
        verdict = _of(
            DriftVerdict, {**numbers, **given, "columns": columns, "p_one": window.p_one, "p_two": window.p_two}
        )
    return WindowDrift(
        window.side,
        window.kind,
        window.against,
        window.start,
        window.stop,
        window.rows,
        verdict,
        window.reason if verdict is None else "",
        details.get("refused", {}),
        stand_for=details.get("stand_for"),
    )


def cut(text: str, most: int = _KEPT_TEXT) -> str:
    """Return a text with at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _numbers(kind: type) -> list[str]:
    """Return the fields of a verdict that have no column of the table."""
    own = {"outcome", "reason", "rows", "p_one", "p_two", "columns"}
    return [each.name for each in fields(kind) if each.name not in own]


def _kept(column: ColumnDrift) -> dict[str, Any]:
    shape = column.histogram
    few = replace(
        column,
        column=cut(column.column),
        moved=cut(column.moved),
        unjudged=tuple(map(cut, column.unjudged[:_KEPT_NAMES])),
        new=tuple(map(cut, column.new[:_KEPT_NAMES])),
        vanished=tuple(map(cut, column.vanished[:_KEPT_NAMES])),
        histogram=shape and replace(shape, labels=tuple(map(cut, shape.labels))),
    )
    return asdict(few)


def _column(data: Mapping[str, Any]) -> ColumnDrift:
    found = _of(ColumnDrift, {key: _tuples(value) for key, value in data.items()})
    shape = data.get("histogram")
    return (
        found if shape is None else replace(found, histogram=_of(Histogram, {k: _tuples(v) for k, v in shape.items()}))
    )


def _of(kind: type[T], data: Mapping[str, Any]) -> T:
    """Return a dataclass of the fields that it has: another release may have kept others."""
    return kind(**{each.name: data[each.name] for each in fields(kind) if each.name in data})  # type: ignore[arg-type]


def printable(text: str) -> str:
    r"""Return a text in which what is no printable character, such as NUL, is written as ``\u0000``.

    It may name a category, which is anybody's text; Postgres refuses NUL.
    """
    return "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in text)


def plain(value: Any) -> Any:
    """Return JSON data: without NaN and infinity, which a database may refuse."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tuples(value: Any) -> Any:
    """Return lists as tuples, and in them what was no number as NaN."""
    if isinstance(value, list):
        return tuple(float("nan") if each is None else _tuples(each) for each in value)
    return value
