"""What of a window of inputs, or of silence, is beyond a bound of ``monitor.quality``. Pure.

Owns the facts that are told of a window, and the sentences. How they are read is ``facts``', what follows from a breach
is ``incidents``'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.monitor.data_quality import Finding, named
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from raymlops.config.data import QualitySection
    from raymlops.monitor.data_quality import ColumnQuality, Shares

ROSE = 0.005
"""A share that rose by less than half a point beyond chance is not shown."""

_CHECKS = {"max_silence_h": "silence", "min_rows": "rows"}
_MAX_NAME = 200


@dataclass(frozen=True)
class WindowQuality(Record):
    """The facts of one window of inputs."""

    start: datetime
    stop: datetime
    rows: int
    """That were served: those of a sampled log count by their weight."""
    usual_rows: float | None
    """The median of windows before it, at the same time of day; None where none is known."""
    columns: tuple[ColumnQuality, ...]
    """Those with a share that rose, or is beyond a bound, what rose most first."""
    repeated: float | None = None
    """Share of rows whose request id and number were there before; None where that was not read.

    ``drift`` reads it of the newest window, the controller of each where there is a bound; of a million rows at most.
    """

    def line(self) -> str:
        """Return the facts as a line."""
        usual = "" if self.usual_rows is None else f" (usually {self.usual_rows:,.0f})"
        parts, risen = [f"{self.rows:,} rows{usual}"], dict[str, list[tuple[str, float]]]()
        for column in self.columns:
            for _, words, share in shares_of(column):
                if share.risen > ROSE:
                    risen.setdefault(words, []).append((column.column, share.after))
        parts += [f"{words}: {named(found)}" for words, found in risen.items()]
        if self.repeated:
            parts.append(f"{self.repeated:.1%} repeat a request id")
        return f"data, {self.start:%Y-%m-%d %H:%M} to {self.stop:%Y-%m-%d %H:%M} UTC: {'; '.join(parts)}"


@dataclass(frozen=True)
class Breach:
    """A value beyond its bound."""

    bound: str
    """The field of ``monitor.quality``."""
    got: float
    allowed: float
    text: str
    """What was got and is allowed; no column is named."""
    column: str | None = None

    @property
    def subject(self) -> str:
        """Return what tells it from others of a window."""
        return self.bound if self.column is None else f"{self.column} ({self.bound})"

    def finding(self, where: str) -> Finding:
        """Return it as what was found in a window."""
        start = "" if where == "now" else f"{where}: "
        column = "" if self.column is None else f"{self.column}, "
        check = _CHECKS.get(self.bound, self.bound.removeprefix("max_"))
        return Finding(check, where, self.got, self.allowed, f"{start}{column}{self.text} ({self.bound})")

    def to_dict(self) -> dict[str, Any]:
        """Return it as it is kept."""
        return {"bound": self.bound, "column": self.column and self.column[:_MAX_NAME], "text": self.text}


def breaches(window: WindowQuality, bounds: QualitySection) -> Iterator[Breach]:
    """Yield what of a window is beyond a bound."""
    fewest, repeated, most = bounds.min_rows, window.repeated or 0.0, bounds.max_repeated
    if fewest is not None and window.rows < fewest:
        yield Breach("min_rows", window.rows, fewest, f"{window.rows:,} rows, fewer than {fewest:,}")
    if most is not None and repeated > most:
        text = f"{repeated:.2%} of the rows repeat a request id, more than {most:.2%}"
        yield Breach("max_repeated", repeated, most, text)
    for column in window.columns:
        for bound, words, share in shares_of(column):
            if is_beyond(bounds, bound, share):
                allowed, own = float(getattr(bounds, bound)), _own(bound, share)
                text = f"{words}: {share.after:.1%}, more than {allowed:.1%}"
                text += f" beside the {share.before:.1%} of training" if own >= ROSE else ""
                text += f" and {share.chance:.1%} of chance" if own and share.chance >= ROSE else ""
                yield Breach(bound, share.after - own, allowed, text, column.column)


def silence(silent_h: float, bounds: QualitySection) -> Breach | None:
    """Return the breach of hours without a row; None where they are within the bound, or no bound is set."""
    most_h = bounds.max_silence_h
    if most_h is None or silent_h <= most_h:
        return None
    return Breach("max_silence_h", silent_h, most_h, f"no row for {silent_h:.1f} h, more than {most_h:g}")


def shares_of(column: ColumnQuality) -> list[tuple[str, str, Shares]]:
    """Return what is told of a column: the bound, words, and the share."""
    found = (
        ("max_nulls", "missing", column.nulls),
        ("max_out_of_range", "out of the range of training", column.out_of_range),
        ("max_new_categories", "texts that training has not, or hardly", column.new_categories),
    )
    return [(bound, words, share) for bound, words, share in found if share is not None]


def is_beyond(bounds: QualitySection, bound: str, share: Shares) -> bool:
    """Return whether a share is beyond its bound."""
    allowed = getattr(bounds, bound)
    return allowed is not None and share.after - _own(bound, share) > allowed


def _own(bound: str, share: Shares) -> float:
    """Return the share that counts for no breach: of rare texts, of which a free text has many, those of training.

    Chance moves that share from window to window: two thirds of 500 rows by a standard deviation of 2 points.
    """
    return share.before + share.chance if bound == "max_new_categories" else 0.0


def window_bounds(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bounds of windows in ``monitor.quality`` as it is stored, whichever release stored it."""
    return {name: value for name, value in section.items() if value is not None and name != "max_silence_h"}


def bounds_windows(bounds: QualitySection) -> bool:
    """Return whether any bound is one of windows."""
    return bool(window_bounds(bounds.model_dump()))
