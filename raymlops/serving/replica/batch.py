"""One batch: the requests whose rows run through the model together, and what each of them gets.

Owns how columns are concatenated and outputs split, the parts in which a batch that raised is run again, and the row
numbers of errors. Knows nothing of queues or models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from raymlops.errors import InvalidRowsError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from raymlops.arrays import Columns


@dataclass(slots=True)
class Entry:
    """The rows of one request, or a piece of them; ``longest`` is the length of the longest row."""

    columns: Columns
    rows: int
    longest: int
    answer: asyncio.Future[Columns]
    first_row: int = 0
    """Where in its request a piece begins."""
    counted: bool = False
    """Among the waiting rows."""


@dataclass(slots=True)
class Batch:
    """Entries that run together, with the sum of their rows; ``again`` where they are a part of one that raised."""

    entries: list[Entry]
    rows: int = 0
    longest: int = 0
    again: bool = False

    def add(self, entry: Entry) -> None:
        """Let an entry run with the others."""
        self.entries.append(entry)
        self.rows += entry.rows
        self.longest = max(self.longest, entry.longest)

    def parts(self, error: Exception) -> tuple[list[Entry], list[Entry]]:
        """Return the entries in two parts, by what was raised on all of them.

        Rows that the error names are a part of their own, and are judged by how they run: a recipe may count them
        wrongly. Halves bound the number of runs where that did not help.
        """
        if isinstance(error, InvalidRowsError) and not self.again:
            unnamed, named = self._by_rows({problem.row for problem in error.problems})
            if unnamed and named:
                return unnamed, named
        middle = len(self.entries) // 2
        return self.entries[:middle], self.entries[middle:]

    def deliver(self, results: Sequence[Columns | Exception]) -> None:
        """Answer each entry that is still waited for."""
        for entry, result in zip(self.entries, results, strict=True):
            if entry.answer.done():
                continue
            if isinstance(result, Exception):
                entry.answer.set_exception(result)
            else:
                entry.answer.set_result(result)

    def _by_rows(self, rows: set[int | None]) -> tuple[list[Entry], list[Entry]]:
        """Return the entries without any of these rows of the batch, and those with one."""
        sides: tuple[list[Entry], list[Entry]] = [], []
        start = 0
        for entry in self.entries:
            sides[not rows.isdisjoint(range(start, start + entry.rows))].append(entry)
            start += entry.rows
        return sides


def moved(error: Exception, first_row: int) -> Exception:
    """Return an error about rows by their places in what holds them from ``first_row`` on."""
    if not isinstance(error, InvalidRowsError) or not first_row:
        return error
    return InvalidRowsError(
        [
            problem if problem.row is None else replace(problem, row=problem.row + first_row)
            for problem in error.problems
        ]
    )


def merge(parts: Sequence[Columns]) -> Columns:
    """Return the rows of all parts."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split(outputs: Columns, rows: Sequence[int]) -> list[Columns]:
    """Return the outputs in parts of so many rows."""
    if len(rows) == 1:
        return [outputs]
    ends = np.cumsum(rows).tolist()
    return [
        {name: array[end - count : end] for name, array in outputs.items()}
        for end, count in zip(ends, rows, strict=True)
    ]
