"""What of a window of inputs, or of silence, is beyond a bound of ``monitor.quality``. Pure.

Owns the sentences. What the facts of a window are is ``facts``', what follows from a breach is ``incidents``'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.lifecycle.watch.bounds.facts import is_beyond, shares_of
from raymlops.monitor.data_quality import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.config.data import QualitySection
    from raymlops.lifecycle.watch.bounds.facts import WindowQuality

_CHECKS = {"max_silence_h": "silence", "min_rows": "rows"}
_MAX_NAME = 200


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
            if is_beyond(bounds, bound, share.after):
                allowed = float(getattr(bounds, bound))
                text = f"{words}: {share.after:.1%}, more than {allowed:.1%}"
                yield Breach(bound, share.after, allowed, text, column.column)


def silence(silent_h: float, bounds: QualitySection) -> Breach | None:
    """Return the breach of hours without a row; None where they are within their bound, or there is none."""
    most_h = bounds.max_silence_h
    if most_h is None or silent_h <= most_h:
        return None
    return Breach("max_silence_h", silent_h, most_h, f"no row for {silent_h:.1f} h, more than {most_h:g}")


def bounds_windows(bounds: QualitySection) -> bool:
    """Return whether any bound is one of windows."""
    return any(value is not None for name, value in bounds if name != "max_silence_h")
