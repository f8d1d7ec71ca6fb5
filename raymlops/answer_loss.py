"""The loss of one answer against its label, 0 (right) to 1 (as wrong as can be): what a rollout compares versions by.

Owns the rules that need no code of the recipe, and how registration derives one from a signature and the model's
answers to validation rows. A rule is JSON data in the bundle. Pure: knows nothing of recipes, files or rollouts.

=============== ================================== =============================================================
kind            outputs                            loss
=============== ================================== =============================================================
``probability`` one probability p, alone or beside (p - y)², where y is 1 for a label of the positive class:
                the class that it is for           Brier's score of two classes
``class``       a class                            0 where it is the label, else 1
``class``       a class and its probability p, or  (1 - p)² / 2 where the class is the label, else (1 + p²) / 2
                all classes' (p: the largest)
``vector``      a probability for each class       half the squared distance to the label's class alone
``number``      one number                         absolute error / ``scale``, at most 1
=============== ================================== =============================================================

The squared ones are Brier's (Monthly Weather Review 78, 1950), halved to stay within [0, 1], and lowest in the mean
where the probabilities are true. A class with its own probability counts those of other classes as 0, as they are not
known: it is lowest in the mean where p is the chance that the class is right, where it is (1 - p²) / 2, so that the
likelier class costs less. An answer that is null costs 1.

A label of two classes may be written 1, true or "1" and 0, false or "0"; a number or an index also as text. A label
that fits none of this has no loss.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from raymlops.column_types import binary, chance_of, real, whole
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.arrays import Column, Columns
    from raymlops.signature import Signature

Kind = Literal["probability", "class", "vector", "number", "recipe", "none"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SCALE_QUANTILE = 0.95
"""Of the absolute errors on validation. Of a version with the same errors 1 in 20 is clipped: few enough for a mean to
say something. A larger quantile is set by the few worst errors, beside which all others look alike."""
SUM_TOLERANCE = 0.01
"""By which probabilities of all classes may miss a sum of 1: recipes round them."""

_CLASSES = {"int", "bool", "string"}


@dataclass(frozen=True)
class AnswerLoss(Record):
    """A rule for the loss of one answer."""

    kind: Kind
    output: str | None = None
    """The class or the number."""
    probabilities: tuple[str, ...] = ()
    """Columns with probabilities: a single one, or one a class."""
    positive: Any = None
    """The class that a single ``probability`` is for; of a ``class`` that is one of two, the one called 1 or true."""
    negative: Any = None
    """The other class."""
    scale: float | None = None
    """The absolute error that costs 1, in units of the label."""
    reason: str = ""
    """Why there is no loss, of the kind ``none``."""

    @classmethod
    def none(cls, reason: str) -> AnswerLoss:
        """Return the rule of a model whose answers have no loss."""
        return cls("none", reason=reason)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AnswerLoss:
        """Rebuild a rule; one that a newer raymlops wrote gives no losses."""
        if data.get("kind") not in KINDS:
            return cls.none(f"the bundle's loss {data.get('kind')!r} is unknown here; register its run again")
        scale = data.get("scale")
        if data["kind"] == "number" and (scale is None or not math.isfinite(scale)):  # JSON has none
            return cls.none(
                f"the bundle has no finite scale for the errors of {data.get('output')!r}; register its run again"
            )
        return super().from_dict({**data, "probabilities": tuple(data.get("probabilities", ()))})

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the output columns that it reads."""
        needed = [self.output] if self.output and self.kind != "probability" else []
        return (*needed, *self.probabilities)

    def of(self, output: Mapping[str, Any], label: Any) -> float | None:
        """Return the loss of one row's outputs, None where they and the label cannot be compared."""
        if any(name not in output for name in self.columns):
            return None
        if self.kind == "probability":
            return self._probability(output[self.probabilities[0]], label)
        if self.kind == "class":
            return self._class(output, label)
        if self.kind == "vector":
            return self._vector(output, label)
        if self.kind == "number" and self.output is not None and self.scale:
            truth, answer = real(label), real(output[self.output])
            if truth is None:
                return None
            return 1.0 if answer is None else min(1.0, abs(answer - truth) / self.scale)
        return None

    def class_of(self, label: Any) -> float | int | str | None:
        """Return the class that a label names: 1 or 0, an index, or a text; of a ``number`` the number.

        None where it is none. A recipe's own labels are what they are written as.
        """
        if self.kind in {"number", "none"}:
            return real(label)
        if self.kind == "recipe":
            return json.dumps(label, sort_keys=True)
        if isinstance(self.positive, str):
            return {self.positive: 1, self.negative: 0}.get(label) if isinstance(label, str) else None
        if self.kind == "probability" or self.positive is not None:
            return binary(label)
        if label in self._names():
            return self.probabilities.index(label)
        found = whole(label)
        return label if found is None and self.kind == "class" and isinstance(label, str) else found

    def _probability(self, answer: Any, label: Any) -> float | None:
        truth = self.class_of(label)
        if not isinstance(truth, int):
            return None
        chance = chance_of(answer)
        return 1.0 if chance is None else (chance - truth) ** 2

    def _class(self, output: Mapping[str, Any], label: Any) -> float | None:
        if self.output is None:
            return None
        answer = output[self.output]
        if not isinstance(label, str) and isinstance(answer, str):  # an index into the probabilities beside a text
            return self._vector(output, label)
        right = self._is(answer, label)
        if right is None:
            return None
        if answer is None or not self.probabilities:
            return float(not right)
        chances = [chance_of(value) for value in self._values(output)]
        chance = max((value for value in chances if value is not None), default=None)
        if chance is None:
            return 1.0
        return (1 - chance) ** 2 / 2 if right else (1 + chance**2) / 2

    def _is(self, answer: Any, label: Any) -> bool | None:
        """Return whether a class is the label's; None where the label is no class."""
        if isinstance(self.positive, bool | int):
            truth = binary(label)
            return None if truth is None else answer is not None and truth == int(answer)
        if isinstance(answer, str):
            return answer == label if isinstance(label, str) else None
        if isinstance(label, str) and answer is None:
            return False
        number = whole(label)
        return None if number is None else answer is not None and number == answer

    def _vector(self, output: Mapping[str, Any], label: Any) -> float | None:
        values = self._values(output)
        chosen = self.probabilities.index(label) if label in self._names() else whole(label)
        if chosen is None or not 0 <= chosen < len(values) or len(values) < 2:
            return None
        if any(real(value) is None for value in values):
            return 1.0
        misses = (abs(value - (index == chosen)) for index, value in enumerate(values))
        return min(1.0, 0.5 * math.fsum(min(2.0, miss * miss) for miss in misses))

    def _names(self) -> tuple[str, ...]:
        return self.probabilities if len(self.probabilities) > 1 else ()

    def _values(self, output: Mapping[str, Any]) -> list[Any]:
        if len(self.probabilities) > 1:
            return [output[name] for name in self.probabilities]
        value = output[self.probabilities[0]] if self.probabilities else None
        return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


def declared(signature: Signature) -> AnswerLoss:
    """Return the rule that a signature alone allows: of a bundle without one, and of the default ``loss_of``.

    What a number beside a class means the signature does not say, but for a class that is true or false, where it is
    taken for the probability of true. A single number has no loss: its scale is not known.
    """
    parts = _Parts.of(signature)
    if len(parts.classes) > 1:
        return _several(parts)
    if parts.classes:
        (found,) = parts.classes
        if found.type == "bool" and len(parts.numbers) == 1 and not parts.vectors:
            return AnswerLoss("probability", found.name, (parts.numbers[0].name,), positive=True, negative=False)
        return _alone(found)
    if len(parts.numbers) > 1 and not parts.others:
        return AnswerLoss("vector", probabilities=tuple(column.name for column in parts.numbers))
    if len(parts.vectors) == 1 and not parts.numbers and not parts.others:
        return AnswerLoss("vector", probabilities=(parts.vectors[0].name,))
    if len(parts.numbers) == 1 and not parts.others:
        return AnswerLoss.none(f"{parts.numbers[0].name!r} is a number, and no scale of its errors was kept")
    return _unlike(parts)


def fitted(
    signature: Signature, answers: Columns, labels: npt.NDArray[Any] | None, *, label: str | None = None
) -> AnswerLoss:
    """Return the rule for a model by its ``answers`` to validation rows, arrays of the outputs' columns.

    ``labels`` are those of the same rows, as the table has them; None without labels. They say whether a number
    is a probability of two classes, and give the scale of a number's errors. An output that has the name of their
    column, ``label``, is what they are compared with, if it is a number that they are too, or nothing else fits.
    """
    known = None if labels is None else [value for value in np.asarray(labels).tolist() if not _is_missing(value)]
    named = tuple(column for column in signature.outputs if column.name == label)
    alone = replace(signature, outputs=named) if named and len(signature.outputs) > 1 else None
    if alone is not None and _Parts.of(alone).numbers and known and not all(binary(one) is not None for one in known):
        return _fitted(alone, answers, labels, known)
    found = _fitted(signature, answers, labels, known)
    return _fitted(alone, answers, labels, known) if alone is not None and found.kind == "none" else found


def _fitted(
    signature: Signature, answers: Columns, labels: npt.NDArray[Any] | None, known: Sequence[Any] | None
) -> AnswerLoss:
    parts = _Parts.of(signature)
    if len(parts.classes) > 1:
        return _several(parts)
    if not parts.classes:
        return _without_class(parts, answers, labels, known or [])
    (found,) = parts.classes
    if found.type == "int" and known and any(whole(value) is None for value in known) and not parts.others:
        return _number(found.name, answers, labels)  # labels such as 3.7 name no class
    if known and all(_fits_none(found, value) for value in known) and not parts.vectors and len(parts.numbers) < 2:
        return AnswerLoss.none(f"labels such as {known[0]!r} cannot be compared with the class {found.name!r}")
    return _with_class(found, parts, answers, known)


@dataclass(frozen=True)
class _Parts:
    """The output columns by what they can be."""

    classes: tuple[Column, ...]
    numbers: tuple[Column, ...]
    vectors: tuple[Column, ...]
    others: tuple[Column, ...]

    @classmethod
    def of(cls, signature: Signature) -> _Parts:
        columns = signature.outputs
        classes = tuple(column for column in columns if not column.shape and column.type in _CLASSES)
        numbers = tuple(column for column in columns if not column.shape and column.type == "float")
        vectors = tuple(column for column in columns if len(column.shape) == 1 and column.type == "float")
        seen = (*classes, *numbers, *vectors)
        return cls(classes, numbers, vectors, tuple(column for column in columns if column not in seen))


def _alone(column: Column) -> AnswerLoss:
    two = column.type == "bool"
    return AnswerLoss("class", column.name, positive=True if two else None, negative=False if two else None)


def _several(parts: _Parts) -> AnswerLoss:
    names = ", ".join(column.name for column in parts.classes)
    return AnswerLoss.none(f"several outputs are classes: {names}")


def _unlike(parts: _Parts) -> AnswerLoss:
    names = ", ".join(column.name for column in (*parts.classes, *parts.numbers, *parts.vectors, *parts.others))
    return AnswerLoss.none(f"the outputs are neither a class, probabilities nor a single number: {names}")


def _with_class(found: Column, parts: _Parts, answers: Columns, known: Sequence[Any] | None) -> AnswerLoss:
    names = tuple(column.name for column in parts.numbers)
    sure = [column.name for column in parts.vectors if _are_all(np.asarray(answers[column.name]).tolist())]
    every = len(names) > 1 and _are_all(np.stack([answers[name] for name in names], axis=1).tolist())
    likely = [name for name in names if _are_chances(answers[name])]
    two = _two_of(found, answers[found.name], known)
    texts = isinstance(two[0], str)
    if sure or every:
        likely = sure[:1] or list(names)
    elif len(likely) != 1:
        likely = []
    elif two[0] is not None:
        classes, chances = np.asarray(answers[found.name]), answers[likely[0]]
        # Which of two texts a probability is for, the answers say: the one where it is larger.
        ranked = sorted(two, key=lambda value: _mean(chances[classes == value]), reverse=True) if texts else two
        if _is_of_one(chances, classes == ranked[0]):
            return AnswerLoss("probability", found.name, tuple(likely), *ranked)
    return AnswerLoss("class", found.name, tuple(likely), *((None, None) if texts else two))


def _without_class(
    parts: _Parts, answers: Columns, labels: npt.NDArray[Any] | None, known: Sequence[Any]
) -> AnswerLoss:
    names = tuple(column.name for column in parts.numbers)
    if len(names) == 1 and not parts.vectors and not parts.others:
        if labels is None:
            return AnswerLoss.none(
                f"{names[0]!r} is a number, and the validation split has no labels to measure its errors by"
            )
        if known and all(binary(value) is not None for value in known) and _are_chances(answers[names[0]]):
            return AnswerLoss("probability", probabilities=names, positive=1, negative=0)
        return _number(names[0], answers, labels)
    if len(names) > 1 and not parts.others and _are_all(np.stack([answers[n] for n in names], axis=1).tolist()):
        return AnswerLoss("vector", probabilities=names)
    sure = [column.name for column in parts.vectors if _are_all(np.asarray(answers[column.name]).tolist())]
    return AnswerLoss("vector", probabilities=(sure[0],)) if len(sure) == 1 else _unlike(parts)


def _number(name: str, answers: Columns, labels: npt.NDArray[Any] | None) -> AnswerLoss:
    pairs = zip(np.asarray(answers[name]).tolist(), np.asarray(labels).tolist(), strict=True)
    numbers = [(real(answer), real(label)) for answer, label in pairs]
    errors = [abs(answer - label) for answer, label in numbers if answer is not None and label is not None]
    if not errors:
        return AnswerLoss.none(f"{name!r} is a number, and the validation labels are not")
    # Digits that another machine's sums might not share are left out: the same training must give the same bundle.
    # Between a number and infinity no quantile can be interpolated, so that differences that overflow are the largest.
    largest = np.finfo(np.float64).max
    scale = float(f"{float(np.quantile(np.minimum(errors, largest), SCALE_QUANTILE)):.4g}")
    if math.isinf(scale):
        far = f"{name!r} differs from more than {1 - SCALE_QUANTILE:.0%} of the validation labels by more than"
        return AnswerLoss.none(
            f"{far} {largest:.1e}, the largest number, so that its errors have no scale; rescale the target"
        )
    if not scale > 0:
        return AnswerLoss.none(f"{name!r} has no errors on validation rows, so that nothing says which would be large")
    return AnswerLoss("number", name, scale=scale)


def _two_of(column: Column, answers: npt.NDArray[Any], known: Sequence[Any] | None) -> tuple[Any, Any]:
    """Return the two classes, the one called 1 or true first; a pair of None where there are others, or one alone."""
    if column.type == "bool":
        return True, False
    seen = {value for value in np.asarray(answers).tolist() if not _is_missing(value)} | set(known or ())
    if column.type == "int" and seen <= {0, 1} and known:
        return 1, 0
    if column.type == "string" and len(seen) == 2 and all(isinstance(value, str) for value in seen):
        low, high = sorted(seen)
        return high, low
    return None, None


def _is_of_one(chances: npt.NDArray[Any], positive: npt.NDArray[np.bool_]) -> bool:
    """Return whether a probability is always that of the positive class, not that of the class that was answered.

    That of the answered one of two classes is at least one half. That of the positive class is lower wherever the
    other one was answered, and some of those are below one half.
    """
    above, below = np.asarray(chances)[positive], np.asarray(chances)[~positive]
    if not len(below):
        return True  # nothing but positive answers: both readings are the same
    return bool(np.min(below) < 0.5 and (not len(above) or np.max(below) <= np.min(above)))


def _mean(values: npt.NDArray[Any]) -> float:
    return float(np.mean(values)) if len(values) else -math.inf


def _are_chances(values: npt.NDArray[Any]) -> bool:
    """Return whether all are probabilities; null says nothing."""
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    return bool(len(array) and (array >= 0).all() and (array <= 1).all())


def _are_all(rows: Sequence[Sequence[float]]) -> bool:
    """Return whether every row holds the probabilities of all of at least two classes."""
    return bool(rows) and all(
        len(row) > 1 and min(row) >= 0 and abs(math.fsum(row) - 1) <= SUM_TOLERANCE for row in rows
    )


def _fits_none(column: Column, label: Any) -> bool:
    if column.type == "string":
        return not isinstance(label, str)
    return (binary(label) if column.type == "bool" else whole(label)) is None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
