"""Compare a version's answers to test rows with their labels, beside the metric of the same rows.

Owns which rows are asked, how their labels are shuffled, and why there may be no comparison. What follows from the
numbers is decided in ``registry.agreement``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raymlops.bundle.loss import own_loss, read_loss
from raymlops.errors import InvalidRowsError, NonFiniteError, RecipeError
from raymlops.lifecycle.registration.request_path import asked
from raymlops.registry.agreement import Orders, agrees, unanswered

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from raymlops.answer_loss import AnswerLoss
    from raymlops.arrays import Columns
    from raymlops.bundle.load import LoadedModel
    from raymlops.data.prepare import SplitData
    from raymlops.records import GateCheck

    Order = npt.NDArray[np.int64]
    Answer = dict[str, Any]

ROWS = 1000
"""About so many test rows, spread evenly."""
SHUFFLES = 10
"""Random orders of labels; the metric is computed for each."""
SEED = 20_130_101


def compare_served(
    candidate: LoadedModel,
    split: SplitData,
    *,
    metric: str,
    mode: Literal["min", "max"],
    batch_size: int,
) -> GateCheck | str:
    """Return whether a version's answers agree with its metric, or why that cannot be asked.

    ``candidate`` is on its device. Its rows take the path of a request, one by one where the recipe rejects some.
    """
    label = candidate.recipe.label
    columns = split.sample(about_rows=ROWS)
    if label is None or columns is None or label not in columns:
        return "the test split has no rows with a label"
    rule = read_loss(candidate.uri, candidate.digest)
    if rule.kind == "none":
        return rule.reason
    rows = len(columns[label])
    draw = np.random.default_rng(SEED)
    orders = [np.arange(rows), *(draw.permutation(rows) for _ in range(SHUFFLES))]
    try:
        answers = _answers(candidate, columns, batch_size=batch_size)
    except (NonFiniteError, RecipeError) as error:  # a caller would get it
        return unanswered(f"{type(error).__name__}: {error}")
    try:
        labels = [row[label] for row in candidate.signature.rows({label: columns[label]})]
        losses = [_mean_loss(candidate, rule, answers, [labels[row] for row in order]) for order in orders]
        measured = [_metric(candidate, columns, order, metric, batch_size=batch_size) for order in orders]
    except (InvalidRowsError, RecipeError) as error:
        return error.message
    if math.isnan(losses[0]):
        return "none of the answers can be compared with the label of its row"
    classes_alone = rule.kind == "class" and not rule.probabilities
    found = Orders(measured[0], measured[1:], mode), Orders(losses[0], losses[1:], "min")
    return agrees(metric, *found, classes_alone=classes_alone, rows=rows)


def _answers(candidate: LoadedModel, columns: Columns, *, batch_size: int) -> list[Answer | None]:
    """Return the answer to each row as JSON values, None where the recipe rejects it."""
    signature = candidate.signature
    rows = signature.rows({column.name: columns[column.name] for column in signature.inputs})
    starts = range(0, len(rows), batch_size)
    return [answer for start in starts for answer in asked(candidate, rows[start : start + batch_size])]


def _mean_loss(
    candidate: LoadedModel, rule: AnswerLoss, answers: Sequence[Answer | None], labels: Sequence[Any]
) -> float:
    """Return the mean loss of answers with these labels as JSON values, None where a row has none; NaN without any."""

    def loss(answer: Answer, label: Any) -> float | None:
        return own_loss(candidate.recipe, answer, label) if rule.kind == "recipe" else rule.of(answer, label)

    pairs = zip(answers, labels, strict=True)
    values = (loss(answer, label) for answer, label in pairs if answer is not None and label is not None)
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else math.nan


def _metric(candidate: LoadedModel, columns: Columns, order: Order, metric: str, *, batch_size: int) -> float:
    """Return a test metric of rows with their labels in an order; NaN where it has no value."""
    from raymlops.data.split import TableSplit
    from raymlops.training.loop.evaluation import named_values, totals

    recipe = candidate.recipe
    assert recipe.label is not None
    shuffled = {**columns, recipe.label: np.asarray(columns[recipe.label])[order]}
    split = TableSplit(shuffled, name="test", recipe=recipe)
    sums = totals(recipe, candidate.model, split, batch_size=batch_size, device=candidate.device)
    with np.errstate(divide="ignore", invalid="ignore"):
        return named_values(recipe, sums, split="test").get(metric, math.nan)
