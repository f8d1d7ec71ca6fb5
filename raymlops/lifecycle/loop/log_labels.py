"""Labels of the prediction log as the column of a table.

Callers write the same label in several ways, and one of them must not end a training for all: where labels are of
several kinds, each becomes what the champion's rule takes it for, as quality does, and what is no label by it does not
count.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raymlops.errors import DataRefusedError
from raymlops.monitor.skill.admission import MOST_LEFT_OUT
from raymlops.predictions.label_type import LabelType
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
    found = [None if isinstance(label, float) and not math.isfinite(label) else label for label in found]
    kinds = Counter(_kind(label) for label in found if label is not None)
    if not kinds:
        return found
    wanted = float if _is_of_numbers(rule) else kinds.most_common(1)[0][0]
    mine = [_kind(label) is wanted for label in found]
    same = {meant: label for label, meant, is_mine in zip(found, classes, mine, strict=True) if is_mine and is_known}
    others = [same.get(meant, meant if _kind(meant) is wanted else None) for meant in classes]
    return [label if is_mine else other for label, is_mine, other in zip(found, mine, others, strict=True)]


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
