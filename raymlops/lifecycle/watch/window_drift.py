"""What is to be said of one window of a model's traffic: a verdict, or why there is none. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from raymlops.display import table
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from raymlops.monitor.drift import DriftVerdict

Side = Literal["inputs", "outputs"]
Kind = Literal["drift", "skew"]
SIDES: dict[Side, str] = {"inputs": "features", "outputs": "predictions"}
"""What a bundle and the log call them."""
_SHOWN = 8


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

    @property
    def outcome(self) -> str:
        """Return ``ok``, ``warn``, ``alarm`` or ``insufficient``; ``waiting`` without a verdict."""
        return "waiting" if self.verdict is None else self.verdict.outcome

    def text(self) -> str:
        """Return a line, and the columns that moved most where they lead to it."""
        title = self.side if self.kind == "drift" else f"{self.side}, skew"
        if self.start is None or self.stop is None:
            return f"{title}: {self.waiting}"
        span = f"{self.start:%Y-%m-%d %H:%M} to {self.stop:%Y-%m-%d %H:%M} UTC, {self.rows:,} rows"
        if self.verdict is None:
            return f"{title}, {span}: {self.waiting}"
        line = f"{title}, {span}, against {self.against}: {self.verdict.outcome}: {self.verdict.reason}"
        line += "".join(f"\n    not judged: {name}: {why}" for name, why in self.refused.items())
        moved = [column for column in self.verdict.columns if column.flagged][:_SHOWN]
        if not moved:
            return line
        rows = [
            {
                "column": column.column,
                "moved": column.moved,
                "influence": "" if column.influence is None else f"{column.influence:.2f}",
                "sd": f"{column.distance:+.1f}",
                "js": f"{column.jensen_shannon:.3f}",
                "median": " -> ".join(f"{side[2]:.4g}" for side in column.quantiles),
                "missing": " -> ".join(f"{share:.1%}" for share in column.nulls),
                "new": ", ".join(column.new[:3]),
                "vanished": ", ".join(column.vanished[:3]),
            }
            for column in moved
        ]
        shown = [name for name in rows[0] if any(row[name] for row in rows)]
        indented = table(rows, dict.fromkeys(shown)).replace("\n", "\n    ")
        return f"{line}\n    {indented}"
