"""Whether a version was tested on rows later than all that it was trained on. Pure.

A model that is retrained again and again is compared with the champion each time, on rows that must say something of
the weeks to come. So they lie after the newest training row, by the time when its label was known: a label that came
in later was there for no training. Or else they are on days of which no row is trained on, such as every tenth.
Whatever times say, rows that are the same as training rows show that times are wrong: the bundle's sketch counts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from raymlops.records import GateCheck

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from raymlops.bundle.trained_rows import Overlap

LATER, OTHERS = "tested on later rows", "tested on rows of its own"
_DAY = "datetime64[D]"
_MICROSECOND = "datetime64[us]"
_END = 2.0**63
"""Of times in microseconds."""
_FEWEST_WEEKS = 8
_WAY_ON = "define row_times() in the recipe, and label_times() where labels come later"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Order:
    """How test rows lie to training rows in time.

    Attributes:
        rows: Test rows.
        early: Those whose label was not known after those of all training rows, or have no time.
        shared_days: Test rows that arose on UTC days of which rows are trained on, or without a time.
        newest: When the last label of the training rows was known, whichever row that is.
        oldest: When the first one of the test rows was.
        unknown: Why nothing is known of it; empty otherwise.
    """

    rows: int = 0
    early: int = 0
    shared_days: int = 0
    newest: str = ""
    oldest: str = ""
    unknown: str = ""


class Times(NamedTuple):
    """When some rows arose, and when their labels were known."""

    arose: Array
    known: Array


class Newest:
    """The newest of some rows, by both times; None where one has none, or there are no rows."""

    def __init__(self) -> None:
        self._arose = self._known = np.datetime64("NaT", "us")
        self._is_known = True

    def of(self, chunks: Iterable[Times | None]) -> Iterator[Times | None]:
        """Yield the times of more rows as they are."""
        for chunk in chunks:
            times = None if chunk is None else Times(*map(_micros, chunk))
            if times is None or np.isnat(times.arose).any() or np.isnat(times.known).any():
                self._is_known = False
            elif len(times.known):
                self._arose = np.fmax(self._arose, times.arose.max())
                self._known = np.fmax(self._known, times.known.max())
            yield chunk

    @property
    def times(self) -> tuple[str, str] | None:
        """Return when the newest row arose, and when the last label was known, in UTC, to the end of that second."""
        if not self._is_known or np.isnat(self._known):
            return None
        ends = (time.astype("datetime64[s]") + np.timedelta64(1, "s") for time in (self._arose, self._known))
        arose, known = (f"{end}+00:00" for end in ends)
        return arose, known


def order_of(train: Iterable[Times | None], test: Iterable[Times | None]) -> Order:
    """Return how test rows lie to training rows, by the times of both in chunks; None is a chunk without times."""
    newest = np.datetime64("NaT", "us")
    days: set[int] = set()
    for chunk in train:
        times = None if chunk is None else Times(*map(_micros, chunk))
        if times is None or np.isnat(times.arose).any() or np.isnat(times.known).any():
            return Order(unknown="not all of its training rows have a time")
        if len(times.known):
            newest = np.fmax(newest, times.known.max())
            days.update(np.unique(_days(times.arose)).tolist())
    if np.isnat(newest):
        return Order(unknown="its training rows are no table")
    trained_on, oldest = np.array(sorted(days)), np.datetime64("NaT", "us")
    rows = early = shared = 0
    for chunk in test:
        if chunk is None:
            return Order(unknown="its test rows have no time")
        times = Times(*map(_micros, chunk))
        rows += len(times.known)
        early += int((~(times.known > newest)).sum())  # which holds for no time at all
        shared += int((np.isnat(times.arose) | np.isin(_days(times.arose), trained_on)).sum())
        if (known := times.known[~np.isnat(times.known)]).size:
            oldest = np.fmin(oldest, known.min())
    return Order(rows, early, shared, _shown(newest), _shown(oldest), "" if rows else "its test rows are no table")


def whole_days(times: Array, *, weeks: bool = True) -> tuple[npt.NDArray[np.int64], Literal["days", "weeks"]]:
    """Return the number, from 0, of the UTC day on which each row arose, of the week where there are at least eight.

    Rows of a day share its fate, and a day often resembles the day before. Rows without a time are of one day.
    """
    micros = _micros(times)
    days = _days(np.where(np.isnat(micros), np.datetime64(0, "us"), micros))
    sevens = (days - days.min()) // 7
    is_long = weeks and len(np.unique(sevens)) >= _FEWEST_WEEKS
    return np.unique(sevens if is_long else days, return_inverse=True)[1], "weeks" if is_long else "days"


def later(order: Order) -> GateCheck:
    """Return whether the test rows are later than the training rows, or on days of their own."""
    allowed = "0 test rows that were not labelled after all training rows, or that arose on a day of theirs"
    if order.unknown:
        return GateCheck(LATER, passed=False, got=None, allowed=allowed, detail=f"{order.unknown}; {_WAY_ON}")
    times = f"their last label was known at {order.newest}, the first one of the test rows at {order.oldest} UTC"
    detail = f"of {order.rows:,} test rows {order.early:,} were not labelled after all training rows: {times}"
    if order.early and order.shared_days < order.rows:
        detail += f"; {order.shared_days:,} arose on days of training rows"
    passed = not (order.early and order.shared_days)
    return GateCheck(
        LATER, passed=passed, got=float(min(order.early, order.shared_days)), allowed=allowed, detail=detail
    )


def others(overlap: Overlap, *, most: float) -> GateCheck:
    """Return whether the test rows are no training rows; ``most`` is the share that may be equal by chance."""
    share = overlap.share
    detail = (
        f"{overlap.seen:,} of {overlap.looked_at:,} test rows that were looked up are training rows too: {share:.2%}"
    )
    if not overlap.is_exact:
        detail += f" with an error of {overlap.error:.2%}, for certain more than {overlap.at_least():.2%}"
    passed = overlap.looked_at > 0 and overlap.at_least() <= most
    got = share if overlap.looked_at else None
    return GateCheck(OTHERS, passed=passed, got=got, allowed=f"<= {most:g}", detail=detail)


def _micros(times: Array) -> npt.NDArray[np.datetime64]:
    if times.dtype.kind == "M":
        return times.astype(_MICROSECOND)
    micros = times.astype(np.float64) * 1e6
    whole = np.where(np.abs(micros) < _END, np.floor(micros), -_END)  # which is no time
    return whole.astype(np.int64).astype(_MICROSECOND)


def _shown(time: np.datetime64) -> str:
    return str(time).removesuffix(".000000")


def _days(times: Array) -> Array:
    return times.astype(_DAY).astype(np.int64)
