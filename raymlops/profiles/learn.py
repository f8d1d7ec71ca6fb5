"""Learn a layout from a reference: one pass, at most 100,000 rows and 128 MB of numbers in memory, of any number.

Owns what becomes an edge or a category. Nothing does that fewer than ``PRIVATE_ROWS`` rows of the reference have:

- an edge is just below the roundest number near a quantile, within the values of the 20 rows around it; where they all
  have one value, it is that;
- a value that many rows have, such as 0, has a bin of its own, and so has each of few values, such as months;
- a category is a text that 20 rows and ``SHARE`` of all have.

One of each n rows is read, drawn by a hash of its number. A bin that is to hold the share p of the rows holds it within
sqrt(p / 50,000), which is 7% of 1/256, relative, one standard deviation: that decides how fine a layout is where, and
changes no count.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.profiles.drawn_rows import drawn_of
from raymlops.profiles.layout import Edges, Layout, Series
from raymlops.profiles.measures import ALL, measured
from raymlops.profiles.scores import CATEGORIES, MOST_SCORES, SCORE_BINS, Score

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from raymlops.profiles.drawn_rows import Numbers
    from raymlops.profiles.measures import Measure

BINS = 256
PRIVATE_ROWS = 20
SHARE = 0.001
TOP = 255
"""Categories of a column."""
TEXT_SHARE = 0.5
"""Where categories are fewer rows than this, lengths and distinct values of the texts are counted too."""
SAMPLE_ROWS = 50_000
MOST_VALUES = 1 << 24
"""Of a sample, 128 MB of numbers; of more than 167 columns fewer rows are kept."""
LONGEST = 256
"""Characters of a category."""
_DIGITS = 17
_NONE = np.zeros(0)


class _Part(NamedTuple):
    """Some rows of a sample: their numbers, and their values by column and measure."""

    numbers: Numbers
    values: dict[tuple[str, Measure], Any]


class Learner:
    """The sample of a reference, added chunk by chunk in order."""

    def __init__(self, *, sample_rows: int = SAMPLE_ROWS) -> None:
        self._most = 2 * sample_rows
        self._halvings = 0
        self._rows = 0
        self._series: dict[tuple[str, Measure], None] = {}
        self._parts: list[_Part] = []

    def add(self, columns: Mapping[str, Any], *, rows: int) -> None:
        """Add the next ``rows`` rows; nothing of ``columns`` is kept but copies of the rows that are read."""
        start, self._rows = self._rows, self._rows + rows
        self._thin(series=max(len(self._series), len(columns)))
        first, last = start >> self._halvings, self._rows >> self._halvings
        numbers = drawn_of(np.arange(first, last + 1), halvings=self._halvings)
        numbers = numbers[(numbers >= start) & (numbers < self._rows)]
        if not len(numbers):
            return
        part = _Part(numbers, {})
        for name, values in columns.items():
            chosen = values.take(pa.array(numbers - start)) if _is_arrow(values) else values[numbers - start]
            for measure, found in measured(chosen, ALL - {"distinct"}).items():
                part.values[name, measure] = _shortened(found) if measure == "category" else np.array(found)
        self._parts.append(part)
        self._series |= dict.fromkeys(part.values)
        self._thin(series=len(self._series))

    def _thin(self, *, series: int) -> None:
        """Read fewer rows where those that were added are too many."""
        most = min(self._most, max(2 * PRIVATE_ROWS, MOST_VALUES // max(1, series)))
        before = self._halvings
        while -(-self._rows >> self._halvings) > most:
            self._halvings += 1
        if self._halvings > before:
            alike: dict[tuple[Any, ...], list[_Part]] = {}
            for part in self._parts:
                alike.setdefault(tuple(part.values), []).append(part)
            self._parts = [self._thinned(parts) for parts in alike.values()]

    def _thinned(self, parts: list[_Part]) -> _Part:
        """Return as one part those rows of parts with the same series that are still drawn."""
        numbers = np.concatenate([part.numbers for part in parts])
        kept = drawn_of(numbers >> self._halvings, halvings=self._halvings) == numbers
        values = {}
        for key in parts[0].values:
            joined = _joined([part.values[key] for part in parts])
            values[key] = joined.filter(pa.array(kept)) if _is_arrow(joined) else joined[kept]
        return _Part(numbers[kept], values)

    def _found(self, key: tuple[str, Measure]) -> list[Any]:
        return [part.values[key] for part in self._parts if key in part.values]

    def __len__(self) -> int:
        """Return the number of series, about."""
        return len(self._series)

    def values(self, column: str, measure: Measure = "number") -> Edges:
        """Return the sampled numbers of a column's measure; none where it has no such measure."""
        return np.concatenate([np.zeros(0), *self._found((column, measure))])

    def layout(self, *, bins: int = BINS, without: Iterable[str] = (), scored: Iterable[str] = ()) -> Layout:
        """Return the layout of the columns, with at most about so many ``bins`` each.

        Of the columns that are ``scored`` the first ones have scores.
        """
        series: list[Series] = []
        texts: dict[str, float] = {}
        for name, measure in self._series:
            if name in {*without}:
                continue
            parts = self._found((name, measure))
            if measure == "category":
                categories, texts[name] = _categories(_joined(parts), top=bins - 1)
                series.append(Series(name, measure, categories=categories))
            elif measure == "length":
                if texts[name] < TEXT_SHARE:
                    series.append(Series(name, measure, edges_of(_joined(parts), bins=bins)))
                    series.append(Series(name, "distinct"))
            else:
                series.append(Series(name, measure, edges_of(_joined(parts), bins=bins)))
        return Layout(
            tuple(series), tuple(islice((score for name in scored for score in self._scores(name)), MOST_SCORES))
        )

    def _scores(self, name: str) -> Iterator[Score]:
        """Yield the scores of a column of numbers or texts."""
        if len(edges := edges_of(self.values(name), bins=SCORE_BINS)):
            yield Score(name, "number", edges)
        if (name, "category") in self._series and (name, "mean") not in self._series:
            texts = _joined(self._found((name, "category"))).drop_null()
            categories, share = _categories(texts, top=CATEGORIES)
            # Where there are no others, one of two says it all, and one alone nothing.
            for category in categories[: len(categories) - 1 if len(categories) < CATEGORIES and share == 1 else None]:
                yield Score(name, "category", _NONE, category)


def edges_of(values: Edges, *, bins: int, own: bool = True) -> Edges:
    """Return rising edges between about ``bins`` bins of equally many rows, fewer where there are fewer rows.

    With ``own``, values that many rows have get a bin of their own.
    """
    numbers = np.sort(values[np.isfinite(values)])
    starts = np.flatnonzero(np.diff(numbers, prepend=np.nan))
    found, counts = numbers[starts], np.diff(starts, append=len(numbers))
    many = counts >= max(PRIVATE_ROWS, 1 if len(found) <= bins // 2 else -(-2 * len(numbers) // bins))
    masses = found[many] if own else found[:0]
    if own and len(masses):
        rest = np.repeat(found[~many], counts[~many])
        left = round(bins * len(rest) / len(numbers))
    else:
        rest, left = numbers, bins
    return np.unique(np.concatenate([masses, np.nextafter(masses, np.inf), _quantiles(rest, bins=left)]))


def _quantiles(rest: Edges, *, bins: int) -> Edges:
    """Return edges near the quantiles of sorted numbers."""
    bins = min(bins, len(rest) // PRIVATE_ROWS)
    if bins < 1:
        return rest[:0]
    places = np.linspace(0, len(rest), bins + 1).astype(np.int64)
    first = np.clip(places - PRIVATE_ROWS // 2, 0, len(rest) - PRIVATE_ROWS)
    low, middle, high = rest[first], rest[first + PRIVATE_ROWS // 2], rest[first + PRIVATE_ROWS - 1]
    edges = np.where(low == high, low, np.nan)
    with np.errstate(all="ignore"):
        magnitude = np.floor(np.log10(np.abs(np.where(middle == 0, 1.0, middle))))
    for digits in range(1, _DIGITS + 1):
        if not np.isnan(edges).any():
            break
        rounded = _rounded(middle, digits - 1 - magnitude)
        fits = np.isnan(edges) & (low < rounded) & (rounded <= high)
        edges[fits] = np.nextafter(rounded[fits], -np.inf)
    return edges[np.isfinite(edges)]


def _rounded(numbers: Edges, digits: Edges) -> Edges:
    """Return numbers rounded to as many decimal digits, which may be negative."""
    with np.errstate(all="ignore"):
        scale = 10.0 ** np.abs(digits)
        return np.where(digits >= 0, np.rint(numbers * scale) / scale, np.rint(numbers / scale) * scale)


def _categories(texts: pa.Array, *, top: int) -> tuple[tuple[str, ...], float]:
    """Return the categories of texts, in their order, and the share of the rows with a value that have one."""
    there = len(texts) - texts.null_count
    counted = pc.value_counts(texts.drop_null())
    values, counts = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
    least = max(PRIVATE_ROWS, SHARE * there)
    many = sorted(
        (-count, value) for value, count in zip(values, counts, strict=True) if count >= least and value != _LONG
    )
    chosen = many[: min(top, TOP)]
    return tuple(sorted(value for _, value in chosen)), -sum(count for count, _ in chosen) / there if there else 1.0


_LONG = "\0long"


def _shortened(texts: pa.Array) -> pa.Array:
    """Return texts with one in place of all that are too long to be a category."""
    return pc.if_else(pc.greater(pc.utf8_length(texts), LONGEST), _LONG, texts)


def _joined(parts: list[Any]) -> Any:
    return pa.concat_arrays(parts) if _is_arrow(parts[0]) else np.concatenate(parts)


def _is_arrow(values: Any) -> bool:
    return isinstance(values, pa.Array | pa.ChunkedArray)
