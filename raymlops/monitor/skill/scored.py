"""What one answer says in numbers, by the rule that compares answers with labels. Pure.

Owns which metrics there are beside the loss, and how one answer adds to each: log loss by the probability of its label,
AUC by its score.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from raymlops.column_types import chance_of, real

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.answer_loss import AnswerLoss
    from raymlops.monitor.skill.clusters import Floats
    from raymlops.monitor.skill.expected import Rule

Metric = Literal["loss", "log_loss", "auc"]
LEAST_CHANCE = 1e-7
"""Of a label: log loss of less is not told apart."""
SCORES = 64
"""Bins of scores, of equal width, for AUC."""


class Believed(NamedTuple):
    """What an answer says of its event: how likely it is, and what the loss is if it comes true or does not."""

    confidence: float
    if_true: float
    if_false: float


def metrics_of(rule: AnswerLoss) -> tuple[Metric, ...]:
    """Return the metrics that answers with this rule have."""
    if rule.kind == "probability":
        return ("loss", "log_loss", "auc")
    return ("loss", "log_loss") if rule.kind == "vector" else () if rule.kind == "none" else ("loss",)


def largest_loss(metric: Metric) -> float:
    """Return the largest loss that an answer can have."""
    return -math.log(LEAST_CHANCE) if metric == "log_loss" else 1.0


def base_rule(rule: AnswerLoss, metric: Metric) -> Rule | None:
    """Return by which rule one who answers the base rate is judged; None where there is no such answer."""
    if metric == "log_loss":
        return "log"
    if rule.kind == "class":
        return "top" if rule.probabilities else "class"
    return "squared" if rule.kind in {"probability", "vector"} else None


def base_by_class(rule: AnswerLoss, metric: Metric, shares: Floats) -> Floats | None:
    """Return the loss by class of one who always answers these shares; None where there is no such answer."""
    found, q = base_rule(rule, metric), np.asarray(shares, dtype=np.float64)
    if found is None:
        return None
    if found == "log":
        return np.asarray(-np.log(np.maximum(q, LEAST_CHANCE)))
    if found == "squared":
        return np.asarray(((q * q).sum() - 2 * q + 1) / 2)
    right = np.arange(len(q)) == q.argmax()
    if found == "class":
        return np.asarray(np.where(right, 0.0, 1.0))
    return np.asarray(np.where(right, (1 - q.max()) ** 2 / 2, (1 + q.max() ** 2) / 2))


def log_loss(rule: AnswerLoss, output: Mapping[str, Any], label: Any) -> float | None:
    """Return the log loss of an answer in nats; None where it and the label cannot be compared."""
    truth = rule.class_of(label)
    if not isinstance(truth, int) or any(name not in output for name in rule.columns):
        return None
    chances = _chances(rule, output)
    if rule.kind == "probability":
        chances = [1 - (chances[0] or 0.0), chances[0]] if chances[0] is not None else [None, None]
    if not 0 <= truth < len(chances):
        return None
    return -math.log(max(chances[truth] or 0.0, LEAST_CHANCE))


def score(rule: AnswerLoss, output: Mapping[str, Any]) -> float:
    """Return one number for an answer: its probability, its number, how sure it is; NaN where it has none."""
    if rule.kind == "number" and rule.output is not None:
        found = real(output.get(rule.output))
        return math.nan if found is None else found
    if rule.probabilities:
        return max((one for one in _chances(rule, output) if one is not None), default=math.nan)
    numbers = (float(value) for value in output.values() if isinstance(value, bool | int | float))
    return next(numbers, math.nan)


def believed(rule: AnswerLoss, output: Mapping[str, Any]) -> Believed | None:
    """Return what an answer says of its event: the positive class, or that it is right; None where it does not say.

    Of several classes the loss, if it is wrong, is what it expects by its own probabilities of the others.
    """
    chances = _chances(rule, output)
    if not chances or any(one is None for one in chances):
        return None
    known = [one for one in chances if one is not None]
    if rule.kind == "probability":
        return Believed(known[0], (1 - known[0]) ** 2, known[0] ** 2)
    top = max(known)
    if rule.kind == "class":
        return Believed(top, (1 - top) ** 2 / 2, (1 + top**2) / 2)
    if rule.kind != "vector" or len(known) < 2:
        return None
    squares = math.fsum(one * one for one in known)
    others = [one for at, one in enumerate(known) if at != known.index(top)]
    rest = math.fsum(others)
    mean = math.fsum(one * one for one in others) / rest if rest else 0.0
    return Believed(top, (squares - 2 * top + 1) / 2, (squares - 2 * mean + 1) / 2)


def came_true(rule: AnswerLoss, output: Mapping[str, Any], label: Any) -> bool:
    """Return whether the event of ``believed`` came true."""
    truth = rule.class_of(label)
    if rule.kind == "probability":
        return truth == 1
    if rule.kind == "vector":
        chances = [one or 0.0 for one in _chances(rule, output)]
        return truth == chances.index(max(chances))
    found = rule.of(output, label)
    return found is not None and found < 0.5  # (1 - p)^2 / 2 where it is right, (1 + p^2) / 2 where not


def histogram(scores: Any) -> Any:
    """Return the bin of each score from 0 to 1."""
    clipped = np.clip(np.nan_to_num(np.asarray(scores, dtype=np.float64)), 0.0, 1.0)
    return np.minimum((clipped * SCORES).astype(np.int64), SCORES - 1)


def auc_of(sums: Floats) -> Floats:
    """Return AUC from histograms of scores by class, (many, 2, SCORES), ties half; NaN where a class is missing."""
    below, above = sums[:, 0], sums[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
        return np.asarray(pairs / (below.sum(axis=1) * above.sum(axis=1)))


def _chances(rule: AnswerLoss, output: Mapping[str, Any]) -> list[float | None]:
    values = [output.get(name) for name in rule.probabilities]
    if len(values) == 1 and isinstance(values[0], list | tuple | np.ndarray):
        values = list(values[0])
    return [chance_of(value) for value in values]
