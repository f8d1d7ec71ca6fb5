"""What labelled traffic of a version is compared with later: its answers to its own test rows.

Owns which rows are asked. They are those of the gate, not the validation rows that early stopping chose the best of.
What is kept of them is ``monitor.skill.reference``'s.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.bundle.loss import own_loss
from raymlops.bundle.slices import slices_of
from raymlops.errors import InvalidRowsError, NonFiniteError, RecipeError
from raymlops.monitor.skill.clusters import FEWEST
from raymlops.monitor.skill.label_classes import LabelClasses
from raymlops.monitor.skill.reference import (
    CALIBRATION_BLOCKS,
    SCORE_BLOCKS,
    QualityReference,
    blocks_of,
    calibrated,
    metric_reference,
    scores_of,
)
from raymlops.monitor.skill.scored import believed, came_true, log_loss, metrics_of, score
from raymlops.recipe import times_of
from raymlops.registry.later_rows import whole_days
from raymlops.training.split_predictions import answered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt
    from torch import nn

    from raymlops.answer_loss import AnswerLoss
    from raymlops.data.prepare import Prepared
    from raymlops.monitor.skill.clusters import Floats
    from raymlops.monitor.skill.expected import Codes
    from raymlops.monitor.skill.reference import Calibrated, MetricReference
    from raymlops.monitor.skill.scored import Metric
    from raymlops.profiles.slices import Slice, Value
    from raymlops.recipe import RecipeBase

    Loss = Callable[[Mapping[str, Any], Any], float | None]

ROWS = 20_000
"""About so many test rows, spread evenly."""
SEED = 20_261_128

_log = logging.getLogger(__name__)


def quality_reference(
    prepared: Prepared,
    model: nn.Module,
    rule: AnswerLoss,
    *,
    batch_size: int,
    device: str,
    slices: Mapping[str, Sequence[Value]] | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> QualityReference | None:
    """Return the reference rows of a version by its ``rule``; None with a warning in the log where it has none.

    ``model`` is in evaluation mode, on ``device``.

    Raises:
        UsageError: a slice is of no input, or its value is of another type.
    """
    recipe, chosen = prepared.recipe, slices_of(slices or {}, prepared.signature)
    if rule.kind == "none":
        _warn(rule.reason)
        return None
    sample = prepared.splits["test"].sample(about_rows=ROWS)
    if sample is None or recipe.label is None or recipe.label not in sample:
        _warn("the test split has no rows with a label")
        return None
    try:
        rows, answers = answered(recipe, model, sample, batch_size=batch_size, device=device, before_batch=before_batch)
        outputs = prepared.signature.rows(answers)
        labels = [row[recipe.label] for row in prepared.signature.rows({recipe.label: rows[recipe.label]})]
        members = {each: each.rows(rows) for each in chosen}
        own, times = _own(recipe) if rule.kind == "recipe" else None, times_of(recipe, rows)
        return of_answers(rule, outputs, labels, own=own, members=members, times=times)
    except (InvalidRowsError, NonFiniteError, RecipeError) as error:  # the gate rejects a version that does not answer
        _warn(str(error))
        return None


def of_answers(
    rule: AnswerLoss,
    outputs: Sequence[Mapping[str, Any]],
    labels: Sequence[Any],
    *,
    own: Loss | None = None,
    members: Mapping[Slice, npt.NDArray[np.bool_] | None] | None = None,
    times: npt.NDArray[Any] | None = None,
) -> QualityReference | None:
    """Return the reference of answers and their labels, as JSON values, in the order of the rows.

    ``own`` is the recipe's own loss, ``members`` the rows of each slice, ``times`` when the rows arose.
    """
    loss: Loss = rule.of if own is None else own
    classes = LabelClasses.of(rule, labels)
    found = [loss(output, label) for output, label in zip(outputs, labels, strict=True)]
    codes = classes.codes(rule, labels)
    kept = np.flatnonzero((codes >= 0) & np.array([one is not None for one in found], dtype=np.bool_))
    if len(kept) < FEWEST:
        _warn(f"{len(kept)} test rows can be compared with their label, and {FEWEST} are needed")
        return None
    codes, blocks = codes[kept], blocks_of(len(kept)) if times is None else whole_days(times[kept])[0]
    days = None if times is None else whole_days(times[kept], weeks=False)[0]
    scored = blocks_of(len(kept), most=SCORE_BLOCKS) if times is None or blocks.max() >= SCORE_BLOCKS else blocks
    pairs = [(outputs[at], labels[at]) for at in kept.tolist()]
    truths = [rule.class_of(label) for _, label in pairs]
    numbers = np.array(truths, dtype=np.float64) if rule.kind == "number" else None
    losses = np.array([found[at] for at in kept], dtype=np.float64)
    others = None if own is None else _of_others(own, pairs)

    def measure(metric: Metric, values: Floats, rows: Any = slice(None)) -> MetricReference:
        return metric_reference(
            rule,
            metric,
            codes[rows],
            values[rows],
            classes=classes.count,
            blocks=blocks[rows],
            days=None if days is None else days[rows],
            numbers=None if numbers is None else numbers[rows],
            others=None if others is None else others[rows],
        )

    names = metrics_of(rule)
    metrics: dict[Metric, MetricReference] = {"loss": measure("loss", losses)}
    if "log_loss" in names:
        logs = [log_loss(rule, output, label) for output, label in pairs]
        metrics["log_loss"] = measure("log_loss", np.array(logs, dtype=np.float64))
    scores = np.array([score(rule, output) for output, _ in pairs]) if "auc" in names else None
    parts = {name: mask[kept] for name, mask in (members or {}).items() if mask is not None}
    return QualityReference(
        len(kept),
        classes,
        metrics,
        None if scores is None else scores_of(scores, codes, scored),
        {name: measure("loss", losses, rows) for name, rows in parts.items() if rows.sum() >= FEWEST},
        _calibrated(rule, pairs, losses, blocks_of(len(kept), most=CALIBRATION_BLOCKS)),
    )


def _own(recipe: RecipeBase) -> Loss:
    return lambda output, label: own_loss(recipe, output, label)


def _of_others(own: Loss, pairs: Sequence[tuple[Mapping[str, Any], Any]]) -> Floats:
    """Return the loss of the answer to another row, drawn at random, with each row's label."""
    drawn = np.random.default_rng(SEED).permutation(len(pairs))
    found = [own(pairs[other][0], label) for other, (_, label) in zip(drawn, pairs, strict=True)]
    return np.array([1.0 if one is None else one for one in found], dtype=np.float64)


def _calibrated(
    rule: AnswerLoss, pairs: Sequence[tuple[Mapping[str, Any], Any]], losses: Floats, blocks: Codes
) -> Calibrated | None:
    said = [believed(rule, output) for output, _ in pairs]
    if any(one is None for one in said):
        return None
    columns = np.array(said, dtype=np.float64)
    events = np.array([came_true(rule, output, label) for output, label in pairs], dtype=np.float64)
    return calibrated(columns[:, 0], events, columns[:, 1], columns[:, 2], losses, blocks=blocks)


def _warn(why: str) -> None:
    _log.warning("the quality of this version's answers will not be judged by late labels: %s", why)
