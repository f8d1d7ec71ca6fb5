"""Labels of the prediction log as the column of a table.

Callers write the same label in several ways, and one of them must not end a training for all: where labels are of
several kinds, each becomes what the champion's rule takes it for, as quality does, and what is no label by it does not
count.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raymlops.errors import DataRefusedError
from raymlops.predictions.label_type import LabelType, unheld
from raymlops.predictions.labelled_rows import MOST_LEFT_OUT
from raymlops.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.answer_loss import AnswerLoss
    from raymlops.arrays import Column

_TAKE_FLOATS = frozenset({"probability", "number"})
"""Kinds of rules whose losses take floats."""
_EMPTY = (list,)
"""The kind of an empty list, which any other list's column holds."""


def of_one_kind(labels: Sequence[Any], rule: AnswerLoss) -> list[Any]:
    """Return labels of one kind: all numbers or truth values, all texts, or all lists; None for what does not count.

    They are numbers where the rule takes them for some, or else of the kind that most are of. Others become the label
    of that kind that means the same by the rule; without one, or without a rule, they do not count. Neither does what
    no column holds, which replicas of an earlier release took: a list of several kinds, a number of too many bits. Nor
    do lists of another shape than the usual one, where they are no more than may be left out: where more are, labels
    are of any shape.
    """
    is_known = rule.kind not in {"recipe", "none"}
    classes = [_held(rule.class_of(label)) for label in labels] if is_known else [None] * len(labels)
    found = [None if is_known and meant is None else label for label, meant in zip(labels, classes, strict=True)]
    found = [_held(label) for label in found]
    kinds = Counter(_kind(label) for label in found if label is not None)
    if not kinds:
        return found
    wanted = float if _is_of_numbers(rule) else max(kinds, key=lambda kind: (kinds[kind], kind != _EMPTY))
    mine = [label is not None and _is_of(_kind(label), wanted) for label in found]
    same = {meant: label for label, meant, is_mine in zip(found, classes, mine, strict=True) if is_mine and is_known}
    others = [same.get(meant, meant if _kind(meant) == wanted else None) for meant in classes]
    return _of_one_shape(
        [label if is_mine else other for label, is_mine, other in zip(found, mine, others, strict=True)]
    )


def _of_one_shape(labels: list[Any]) -> list[Any]:
    """Return labels with None for the few lists of another shape, where nearly all are of one."""
    shapes = [_shape(label) for label in labels]
    counts = Counter(shape for shape in shapes if shape)
    usual, count = counts.most_common(1)[0] if counts else ((), 0)
    if counts.total() - count > MOST_LEFT_OUT * counts.total():
        return labels
    return [None if shape not in {(), usual} else label for label, shape in zip(labels, shapes, strict=True)]


def _shape(label: Any) -> tuple[int | None, ...]:
    """Return the shape of a list, with None for items of several shapes; () of what is no list."""
    if not isinstance(label, list):
        return ()
    inner = {_shape(item) for item in label}
    return (len(label), *(inner.pop() if len(inner) == 1 else [None] * bool(inner)))


def of_type(labels: Sequence[Any], label_type: Column) -> list[Any]:
    """Return labels of the type that the recipe declares; None for others, which do not count.

    Raises:
        DataRefusedError: too many are of another one.
    """
    declared = LabelType(label_type)
    problems = [declared.problem(label) for label in labels]
    wrong = [problem for problem in problems if problem is not None]
    if len(wrong) > MOST_LEFT_OUT * len(labels):
        raise DataRefusedError(
            f"{len(wrong):,} of {len(labels):,} labels in the log are not of the recipe's label_type, at most "
            f"{MOST_LEFT_OUT:.0%} may be, such as: {wrong[0]}",
            hint="Replicas refuse such labels since that recipe is live: let retrain.window begin then.",
        )
    return [label if problem is None else None for label, problem in zip(labels, problems, strict=True)]


def label_array(labels: Sequence[Any], rule: AnswerLoss, label_type: Column | None = None) -> pa.Array:
    """Return labels as a column: of the type that the recipe declares, or of that which they all have.

    Without a declared type truth values beside numbers are 1 and 0, and numbers are integers where all are; floats,
    also of truth values, where answers are a number or a probability, whose losses take floats.
    """
    if label_type is not None:
        declared = Signature((label_type,), (label_type,))
        return pa.array(declared.parse_rows([{label_type.name: label} for label in labels])[label_type.name])
    kinds = _types(labels)
    if not kinds <= {bool, int, float}:
        return pa.array(labels)
    if float in kinds or rule.kind in _TAKE_FLOATS:
        return pa.array([_each(label, float) for label in labels])
    return pa.array(labels if kinds == {bool} else [_each(label, int) for label in labels])


def _is_of_numbers(rule: AnswerLoss) -> bool:
    """Return whether a rule takes all labels for numbers, or for 1 and 0."""
    if isinstance(rule.positive, str):
        return False
    return rule.kind in _TAKE_FLOATS or rule.positive is not None


def _held(label: Any) -> Any:
    """Return a label, None for one that no column holds."""
    return label if unheld(label) is None and _kind(label) is not None else None


def _kind(label: Any) -> Any:
    """Return what kind a label is, of a list with that of its items; None for a list of several kinds."""
    if isinstance(label, bool | int | float):
        return float
    if not isinstance(label, list):
        return type(label)
    kinds = {_kind(item) for item in label}
    if len(kinds) > 1:
        kinds.discard(_EMPTY)
    return (list, *kinds) if len(kinds) < 2 and None not in kinds else None


def _is_of(kind: Any, wanted: Any) -> bool:
    return kind == wanted or (kind == _EMPTY and isinstance(wanted, tuple))


def _types(labels: Sequence[Any]) -> set[type]:
    """Return the types of labels, and of the items of lists."""
    lists = [label for label in labels if isinstance(label, list)]
    return {type(label) for label in labels if not isinstance(label, list)}.union(*map(_types, lists))


def _each(label: Any, number: type[int | float]) -> Any:
    """Return a label with all its numbers of one type."""
    return [_each(item, number) for item in label] if isinstance(label, list) else number(label)
