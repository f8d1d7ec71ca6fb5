"""Answers of a window, labelled or not, as arrays side by side. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

Array = Any


@dataclass(frozen=True)
class Rows:
    """Arrays of the same rows, (rows,), by name."""

    columns: dict[str, Array] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def where(self, chosen: npt.NDArray[Any]) -> Rows:
        """Return some of them."""
        return Rows({name: values[chosen] for name, values in self.columns.items()})

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Return all rows of parts with the same columns, at least one."""
        return cls({name: np.concatenate([part[name] for part in parts]) for name in parts[0].columns})


@dataclass(frozen=True)
class Answers:
    """What was read of a window.

    Attributes:
        rows: How many it has.
        labelled: Those with a label that their answer can be compared with: ``codes``, ``losses``, ``scores``,
            ``numbers``, ``clusters``, ``weights``, ``callers``, ``asked``, ``received``, ``contradicted``, and a column
            for each slice.
        sample: Of all rows: ``asked``, ``received`` (NaN without a label), ``scores``, ``clusters``, ``weights``.
        unlike: How many labels cannot be compared with their answer.
        callers: The names of the callers, by their number.
        notes: What is not in it, and why.
    """

    rows: int
    labelled: Rows
    sample: Rows
    unlike: int
    callers: tuple[str, ...]
    notes: tuple[str, ...] = ()
