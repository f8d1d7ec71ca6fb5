"""How much a model's answers depend on each of its inputs, by exchanging one input at a time between rows.

Permutation importance of Breiman, "Random Forests", Machine Learning 45 (2001), which is the model reliance of Fisher,
Rudin and Dominici, "All Models are Wrong, but Many are Useful", JMLR 20 (2019), here of the answers and not of their
loss: it needs no label. Let row i get input j of another row p(i), and let d be the distance of two answers. Then

    influence of j = sum of d(f(x_i), f(x_i with input j of x_p(i))) / sum of d(f(x_i), f(x_p(i)))

It is 0 where answers do not depend on j, and 1 where they depend on nothing else: an answer then is as unlike the
former one as that to the other row. Numbers are compared by the square of the difference of their ranks among the
answers, so that neither units nor tails matter, texts by whether they differ. Of independent inputs it is the share
of the variance of these ranks in which the input has a part: the total index of Sobol, as estimated by Jansen,
"Analysis of variance designs for model output", Comput. Phys. Commun. 117 (1999).

Owns how many rows are asked for: their number depends on the data and the signature alone, not on a clock, so that
the same run gives the same bundle.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.data.batches import columns_bytes
from raymlops.errors import RaymlopsError
from raymlops.profiles.drawn_rows import drawn
from raymlops.profiles.measures import measured
from raymlops.recipe import signature_of
from raymlops.training.split_predictions import ANSWER_BYTES, answered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from torch import nn

    from raymlops.arrays import Columns
    from raymlops.recipe import RecipeBase

    Array = npt.NDArray[Any]

ROWS = 1_000
"""In which each input is exchanged: the estimate is within about 5% of what all rows would give."""
ASKED_ROWS = 20_000
"""Answered in all, twice what profiles ask for; with more than 20 inputs each is exchanged in fewer rows, ..."""
FEWEST_ROWS = 50
"""... but not in fewer than these: 2,000 inputs take 100,000 answers, and are known to about 25%."""
_LEAST = 20
_ELEMENTS = 64
"""Of a tensor that is answered, evenly spread."""
_PLACE = "\0place"

_log = logging.getLogger(__name__)


def influence(
    recipe: RecipeBase,
    model: nn.Module,
    rows: Columns,
    answers: Columns,
    *,
    batch_size: int,
    device: str,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return the influence of each input, from 0 to 1, by rows of a table and their ``answers``.

    An input is left out, with a warning, where the recipe does not answer rows in which it is exchanged; all of them
    are where there are few rows, or all answers are the same. ``model`` is in evaluation mode, on ``device``.
    """
    names = [column.name for column in signature_of(recipe).inputs]
    there = len(next(iter(answers.values())))
    number = min(there, ROWS, max(FEWEST_ROWS, ASKED_ROWS // len(names)))
    if number < _LEAST:
        _log.warning("how much answers depend on each input is not measured: %d rows, %d are needed", number, _LEAST)
        return {}
    chosen = drawn(there, most=number)
    rows = {name: rows[name][chosen] for name in names}
    answers = {name: values[chosen] for name, values in answers.items()}
    others = _others(number)
    compared = [_Compared(name, values, others) for name, values in answers.items()]
    compared = [each for each in compared if each.whole.any()]
    if not compared:
        _log.warning("how much answers depend on each input is not measured: all of %d are the same", number)
        return {}
    if len(names) == 1:
        return {names[0]: 1.0}  # With it the whole row is exchanged.
    most = ANSWER_BYTES // max(1, columns_bytes(rows), columns_bytes(answers))

    def ask(some: Sequence[str]) -> dict[str, float]:
        """Return the influence of some inputs, whose rows are answered together."""
        places = np.arange(number * len(some))
        of_row = dict.fromkeys(names, places % number)
        for at, name in enumerate(some):
            of_row[name] = np.where(places // number == at, others[places % number], of_row[name])
        exchanged = {name: rows[name][of_row[name]] for name in names}
        try:
            kept, got = answered(
                recipe,
                model,
                {**exchanged, _PLACE: places},
                batch_size=batch_size,
                device=device,
                finite=False,
                before_batch=before_batch,
            )
        except RaymlopsError as error:
            if len(some) == 1:
                _log.warning("how much answers depend on %s is not known: %s", some[0], error.message)
                return {}
            middle = len(some) // 2
            return ask(some[:middle]) | ask(some[middle:])
        found = {}
        for at, name in enumerate(some):
            mine = kept[_PLACE] // number == at
            row = kept[_PLACE][mine] % number
            shares = [each.share(got[each.name][mine], row) for each in compared] if len(row) >= _LEAST else []
            if shares:
                found[name] = round(min(1.0, float(np.mean(shares))), 4)
            else:
                _log.warning("how much answers depend on %s is not known: the recipe rejects most rows", name)
        return found

    together = max(1, min(batch_size // number, most))
    parts = [ask(names[start : start + together]) for start in range(0, len(names), together)]
    return {name: value for part in parts for name, value in part.items()}


class _Compared:
    """An output of the rows as they are, and how far it is from that of the row whose inputs each gets."""

    def __init__(self, name: str, values: Array, others: npt.NDArray[np.int64]) -> None:
        self.name = name
        self._is_text = values.dtype == object and not isinstance(values[0], np.ndarray)
        self._sorted = None if self._is_text else np.sort(_numbers(values), axis=0)
        self._before = self._comparable(values)
        self.whole = self._distances(self._before, self._before[others])

    def share(self, values: Array, row: npt.NDArray[np.int64]) -> float:
        """Return the distance of other answers to some of the rows from theirs, as a share."""
        whole = float(self.whole[row].sum())
        return float(self._distances(self._before[row], self._comparable(values)).sum()) / whole if whole else 0.0

    def _comparable(self, values: Array) -> Array:
        """Return texts as they are, and numbers as ranks from 0 to 1, of shape (rows, elements)."""
        if self._sorted is None:
            return values
        numbers, rows = _numbers(values), len(self._sorted)
        below = [np.searchsorted(*pair, side="left") for pair in zip(self._sorted.T, numbers.T, strict=True)]
        upto = [np.searchsorted(*pair, side="right") for pair in zip(self._sorted.T, numbers.T, strict=True)]
        return np.asarray((np.array(below) + np.array(upto)).T / (2 * rows))

    def _distances(self, one: Array, other: Array) -> npt.NDArray[np.float64]:
        return np.asarray(one != other, np.float64) if self._is_text else np.asarray(((one - other) ** 2).sum(axis=1))


def _numbers(values: Array) -> npt.NDArray[np.float64]:
    """Return the numbers of an output, of shape (rows, elements): of tensors of different shapes, their moments."""
    if values.dtype == object or values.dtype.kind == "M":
        return np.stack([found for measure, found in measured(values).items() if measure != "category"], axis=1)
    flat = values.reshape(len(values), -1)
    return np.asarray(flat[:, :: -(-flat.shape[1] // _ELEMENTS) or 1], np.float64)


def _others(number: int) -> npt.NDArray[np.int64]:
    """Return another row for each row, each once: the next one of a random circle."""
    circle = np.random.default_rng(0).permutation(number)
    others = np.empty(number, np.int64)
    others[circle] = np.roll(circle, 1)
    return others
