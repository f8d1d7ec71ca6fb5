"""Labels of the prediction log as the column of a table.

Callers write the same label in several ways, and one of them must not end a training for all: where labels are of
several kinds, each becomes what the champion's rule takes it for, as quality does, and what is no label by it does not
count.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raymlops.errors import DataRefusedError, InvalidRowsError
from raymlops.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.answer_loss import AnswerLoss
    from raymlops.arrays import Column

_TAKE_FLOATS = frozenset({"probability", "number"})
"""Kinds of rules whose losses take floats."""


def of_one_kind(labels: Sequence[Any], rule: AnswerLoss) -> list[Any]:
    """Return labels of one kind: all numbers or truth values, all texts, or all lists; None for what does not count.

    They are numbers where the rule takes them for some, or else of the kind that most are of. Others become the label
    of that kind that means the same by the rule; without one, or without a rule, they do not count.
    """
    is_known = rule.kind not in {"recipe", "none"}
    classes = [rule.class_of(label) for label in labels] if is_known else [None] * len(labels)
    found = [None if is_known and meant is None else label for label, meant in zip(labels, classes, strict=True)]
    kinds = Counter(_kind(label) for label in found if label is not None)
    if not kinds:
        return found
    wanted = float if _is_of_numbers(rule) else kinds.most_common(1)[0][0]
    mine = [_kind(label) is wanted for label in found]
    same = {meant: label for label, meant, is_mine in zip(found, classes, mine, strict=True) if is_mine and is_known}
    others = [same.get(meant, meant if _kind(meant) is wanted else None) for meant in classes]
    return [label if is_mine else other for label, is_mine, other in zip(found, mine, others, strict=True)]


def label_array(labels: Sequence[Any], rule: AnswerLoss, label_type: Column | None = None) -> pa.Array:
    """Return labels as a column: of the type that the recipe declares, or of that which they all have.

    Without a declared type truth values beside numbers are 1 and 0, and numbers are integers where all are; floats,
    also of truth values, where answers are a number or a probability, whose losses take floats.

    Raises:
        DataRefusedError: they are not of the declared type.
    """
    if label_type is not None:
        declared = Signature((label_type,), (label_type,))
        try:
            return pa.array(declared.parse_rows([{label_type.name: value} for value in labels])[label_type.name])
        except InvalidRowsError as error:
            wrong = f"{len(error.problems):,} labels, such as {error.problems[0].message}"
            raise DataRefusedError(f"the log has labels that are not of the recipe's label_type: {wrong}") from error
    kinds = {type(label) for label in labels}
    if not kinds <= {bool, int, float}:
        return pa.array(labels)
    if float in kinds or rule.kind in _TAKE_FLOATS:
        return pa.array([float(label) for label in labels])
    return pa.array(labels if len(kinds) == 1 else [int(label) for label in labels])


def _is_of_numbers(rule: AnswerLoss) -> bool:
    """Return whether a rule takes all labels for numbers, or for 1 and 0."""
    if isinstance(rule.positive, str):
        return False
    return rule.kind in _TAKE_FLOATS or rule.positive is not None


def _kind(label: Any) -> type:
    return float if isinstance(label, bool | int | float) else type(label)
