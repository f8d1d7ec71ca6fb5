"""Answers of a trained model to rows of a split, as a request would get them, and their comparison with labels.

Owns the way from rows to typed answers before there is a bundle; with one, ``bundle.load`` does it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from raymlops.answer_loss import AnswerLoss, declared, fitted
from raymlops.bundle.load import answer
from raymlops.data.batches import columns_bytes
from raymlops.errors import InvalidRowsError, NonFiniteError, RecipeError
from raymlops.profiles.drawn_rows import drawn
from raymlops.recipe import RecipeBase, signature_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from raymlops.arrays import Columns
    from raymlops.data.prepare import Prepared
    from raymlops.profiles.drawn_rows import Numbers

ANSWER_BYTES = 64 << 20
"""As many of their answers are kept: rows are left out where each is answered with an image or a long text."""
LOSS_ROWS = 10_000
"""Approximate number of validation rows by which the loss is chosen and scaled; a quantile of as many is within 2%."""


def answer_loss(
    prepared: Prepared,
    model: nn.Module,
    *,
    batch_size: int,
    device: str,
    before_batch: Callable[[], None] = lambda: None,
) -> AnswerLoss:
    """Return the answer loss of a model, chosen by its answers to validation rows.

    A recipe that defines ``loss_of`` uses that. ``model`` is in evaluation mode, on ``device``.
    """
    recipe = prepared.recipe
    if type(recipe).loss_of is not RecipeBase.loss_of:
        return AnswerLoss("recipe")
    signature = prepared.signature
    sample = prepared.splits["validation"].sample(about_rows=LOSS_ROWS)
    if sample is None:
        found = declared(signature)
        why = "; its splits are torch datasets, whose items are not request rows with a label"
        return replace(found, reason=f"{found.reason}{why}") if found.kind == "none" else found
    try:
        rows, answers = answered(recipe, model, sample, batch_size=batch_size, device=device, before_batch=before_batch)
    except (NonFiniteError, RecipeError) as error:  # the gate needs its answers, and rejects a version without
        return AnswerLoss.none(f"validation rows were not answered: {error.message}")
    labels = None if recipe.label is None else rows.get(recipe.label)
    return fitted(signature, answers, labels, label=recipe.label)


def answered(
    recipe: RecipeBase,
    model: nn.Module,
    columns: Columns,
    *,
    batch_size: int,
    device: str,
    finite: bool = True,
    before_batch: Callable[[], None] = lambda: None,
) -> tuple[Columns, Columns]:
    """Return rows of a table and their answers, arrays of the signature's outputs, computed in batches as in a replica.

    They are all rows of ``columns`` but those that the recipe rejects; where the answers are too large to be kept, a
    sample of them.

    Raises:
        InvalidRowsError: the recipe rejects every row.
        NonFiniteError: an output is NaN or infinite, and ``finite`` is true.
        RecipeError: the recipe's code raises, or its outputs do not match the signature.
    """
    signature = signature_of(recipe)
    inputs = [column.name for column in signature.inputs]

    def ask(rows: Numbers) -> list[tuple[Numbers, Columns]]:
        before_batch()
        piece = {key: columns[key][rows] for key in inputs}
        try:
            return [(rows, answer(recipe, model, piece, signature=signature, device=device, finite=finite))]
        except InvalidRowsError as error:
            if len(rows) == 1:
                rejected.append(error)
                return []
        middle = len(rows) // 2
        return [*ask(rows[:middle]), *ask(rows[middle:])]

    rejected: list[InvalidRowsError] = []
    rows = np.arange(len(columns[inputs[0]]))
    parts, asked = ask(rows[:batch_size]), min(len(rows), batch_size)
    fitting = max(1, ANSWER_BYTES * asked // max(1, sum(columns_bytes(part) for _, part in parts)))
    left = rows[asked:]
    if fitting < len(rows):
        parts, left = [], drawn(len(rows), most=fitting)
    parts += [part for start in range(0, len(left), batch_size) for part in ask(left[start : start + batch_size])]
    if not parts:
        raise rejected[0]
    kept = np.concatenate([part for part, _ in parts])
    answers = {key: np.concatenate([part[key] for _, part in parts]) for key in parts[0][1]}
    return {key: values[kept] for key, values in columns.items()}, answers
