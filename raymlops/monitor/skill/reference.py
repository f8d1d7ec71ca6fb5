"""What labelled windows are compared with: the test rows that a version was registered on, as its bundle keeps them.

Pure. What is kept is bounded, whatever the rows: per metric the mean loss by label class with its covariance, for AUC
scores by class in blocks of rows, the same of slices, and how far confidence is from what came true.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.monitor.skill.clusters import FEWEST, Estimate, Moments
from raymlops.monitor.skill.days import Days, days_of
from raymlops.monitor.skill.estimated import Calibration, error_on_labelled, expected_losses
from raymlops.monitor.skill.expected import Expectation, base_rate_loss, label_shares, median_losses
from raymlops.monitor.skill.label_classes import LabelClasses
from raymlops.monitor.skill.scored import SCORES, Metric, base_by_class, base_rule, histogram
from raymlops.profiles.slices import Slice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from raymlops.answer_loss import AnswerLoss
    from raymlops.monitor.skill.clusters import Floats
    from raymlops.monitor.skill.expected import Codes

FORMAT = 1
BLOCKS = 20
"""Of consecutive rows, as one cluster each, where rows have no times: neighbours may share their fate."""
CALIBRATION_BLOCKS = 200
SCORE_BLOCKS = 50
LEAST_BASE = 0.2
"""Of the reference's own base loss, which a window is measured by at least: one of a single class would have none, and
no window weighs more than five of the others."""


@dataclass(frozen=True)
class MetricReference:
    """The reference rows by one metric that is a mean loss.

    Attributes:
        expectation: The mean loss by class.
        base: The loss by class of the frozen reference predictor, (classes,).
        base_loss: That of the base rate on the reference rows, or of the frozen predictor where there is none.
        days: How much the days of the rows differ, in skill; nothing is known where rows have no times.
    """

    expectation: Expectation
    base: Floats
    base_loss: float
    days: Days = field(default_factory=Days)

    @property
    def loss(self) -> float:
        """Return the mean loss of the reference rows."""
        return self.expectation.at(self.expectation.shares)[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; a class without rows has null."""
        base = [None if np.isnan(one) else one for one in self.base.tolist()]
        days = list(vars(self.days).values())
        return {
            "expectation": self.expectation.to_dict(),
            "base": base,
            "base_loss": self.base_loss,
            "days": days,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MetricReference:
        """Rebuild it from the data."""
        base = np.array(data["base"], dtype=np.float64)
        expectation = Expectation.from_dict(data["expectation"])
        return cls(expectation, base, float(data["base_loss"]), Days(*data.get("days", ())))


@dataclass(frozen=True)
class Calibrated:
    """How far confidence is from what came true on the reference rows, and by how much estimates are off."""

    calibration: Calibration
    loss: float
    """That is estimated on the reference rows."""
    error: Estimate


@dataclass(frozen=True)
class QualityReference:
    """The reference rows of one version.

    Attributes:
        rows: How many they are.
        classes: Of their labels.
        metrics: By name, those that are mean losses.
        scores: Of AUC, rows by block, class and bin of score, (blocks, 2, SCORES); None without.
        slices: The loss in each slice.
        calibrated: None where answers have no confidence, or rows are too few.
    """

    rows: int
    classes: LabelClasses
    metrics: Mapping[Metric, MetricReference]
    scores: npt.NDArray[np.int64] | None = None
    slices: Mapping[Slice, MetricReference] = field(default_factory=dict)
    calibrated: Calibrated | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, for the bundle."""
        known = self.calibrated
        error = known and [float(getattr(known.error, name)) for name in _ESTIMATE]
        return {
            "format": FORMAT,
            "rows": self.rows,
            "classes": self.classes.to_dict(),
            "metrics": {name: one.to_dict() for name, one in self.metrics.items()},
            "scores": None if self.scores is None else self.scores.tolist(),
            "slices": [{**each._asdict(), "loss": one.to_dict()} for each, one in self.slices.items()],
            "calibrated": known and {"bins": known.calibration.to_dict(), "loss": known.loss, "error": error},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QualityReference:
        """Rebuild it from the data.

        Raises:
            ValueError: a newer raymlops wrote it.
        """
        if (found := data.get("format")) != FORMAT:
            msg = f"the format of its reference for quality is {found!r}; known here: {FORMAT}"
            raise ValueError(msg)
        scores, known = data["scores"], data["calibrated"]
        return cls(
            int(data["rows"]),
            LabelClasses.from_dict(data["classes"]),
            {name: MetricReference.from_dict(one) for name, one in data["metrics"].items()},
            None if scores is None else np.array(scores, dtype=np.int64).reshape(-1, 2, SCORES),
            {Slice(one["column"], one["value"]): MetricReference.from_dict(one["loss"]) for one in data["slices"]},
            known and Calibrated(Calibration.from_dict(known["bins"]), known["loss"], Estimate(*known["error"])),
        )


_ESTIMATE = ("value", "variance", "third", "degrees", "effective")


def blocks_of(rows: int, *, most: int = BLOCKS) -> Codes:
    """Return the block of each of so many consecutive rows."""
    return np.arange(rows, dtype=np.int64) * min(most, rows) // max(rows, 1)


def metric_reference(
    rule: AnswerLoss,
    metric: Metric,
    codes: Codes,
    losses: Floats,
    *,
    classes: int,
    blocks: Codes,
    days: Codes | None = None,
    numbers: Floats | None = None,
    others: Floats | None = None,
) -> MetricReference:
    """Measure one metric on reference rows, each with a class and a loss.

    ``days`` are those of the rows, where these have times. ``numbers`` are labels that are numbers, (rows,). ``others``
    are the losses of the answers to other rows, for a recipe's own loss: there the frozen reference predictor is one
    who knows nothing of the row.
    """
    # Log losses have no bound that is worth the name: none is larger than the largest of these rows.
    most = max(1.0, float(losses.max(initial=0.0)))
    expectation = Expectation.of(codes, losses, clusters=blocks, classes=classes, most=most)
    shares = label_shares(codes, classes=classes)
    base = base_by_class(rule, metric, shares)
    if base is not None:
        rate = base_rule(rule, metric)
        assert rate is not None
        base_loss = base_rate_loss(shares, rate)
    else:
        if numbers is not None and rule.scale:
            others = median_losses(numbers, scale=rule.scale)
        others = np.asarray(losses if others is None else others)
        with np.errstate(divide="ignore", invalid="ignore"):
            base = np.bincount(codes, others, minlength=classes) / np.bincount(codes, minlength=classes)
        base_loss = float(others.mean())
    known = Days()
    if days is not None and base_loss > 0:
        lost = expectation.excess(codes, losses) / base_loss
        known = days_of(Moments(np.stack([Moments.of(lost[days == day]).sums for day in np.unique(days)]))).at(0)
    return MetricReference(expectation, base, base_loss, known)


def scores_of(scores: Any, codes: Codes, blocks: Codes) -> npt.NDArray[np.int64]:
    """Count rows by block, class and bin of score, (blocks, 2, SCORES)."""
    found = np.zeros((int(blocks.max(initial=-1)) + 1, 2, SCORES), dtype=np.int64)
    np.add.at(found, (blocks, codes, histogram(scores)), 1)
    return found


def calibrated(
    confidence: Floats, events: Floats, if_true: Floats, if_false: Floats, losses: Floats, *, blocks: Codes
) -> Calibrated | None:
    """Measure confidence on reference rows; None where blocks are too few for both halves."""
    if len(np.unique(blocks)) < 2 * FEWEST + 2:
        return None
    known = Calibration.of(confidence, events, clusters=blocks)
    estimated = expected_losses(known.of_confidence(confidence), if_true=if_true, if_false=if_false)
    error = error_on_labelled(
        confidence,
        events,
        lambda chance: expected_losses(chance, if_true=if_true, if_false=if_false) - losses,
        clusters=blocks,
    )
    return Calibrated(known, float(estimated.mean()), error)


def blind_losses(rule: AnswerLoss, labels: Sequence[Any], known: QualityReference | None = None) -> Floats | None:
    """Return the loss at each of these labels of a predictor that knows nothing but their shares, or their median.

    By a recipe's own loss it is that of the test rows, where they are ``known``; else None.
    """
    if rule.kind == "recipe":
        return None if known is None else known.metrics["loss"].base[known.classes.codes(rule, labels)]
    truths = [rule.class_of(label) for label in labels]
    if rule.kind == "number" and rule.scale:
        return median_losses(truths, scale=rule.scale)
    places = {truth: at for at, truth in enumerate(dict.fromkeys(truths))}
    codes = np.array([places[truth] for truth in truths], dtype=np.int64)
    base = base_by_class(rule, "loss", label_shares(codes, classes=len(places)))
    return None if base is None else base[codes]


def base_loss(
    rule: AnswerLoss,
    metric: Metric,
    known: MetricReference,
    shares: Floats,
    *,
    frozen: bool,
    numbers: Floats | None = None,
    weights: Floats | None = None,
) -> float:
    """Return the mean loss of the reference predictor on a window with these shares of labels.

    It answers the base rate of the window, the median of numbers, or is ``frozen`` as the bundle has it; of a recipe's
    own loss it always is. At least a fifth of what it was on the reference rows.
    """
    rate = base_rule(rule, metric)
    if rate is not None and not frozen:
        found = base_rate_loss(shares, rate)
    elif numbers is not None and rule.scale and not frozen:
        found = float(np.average(median_losses(numbers, scale=rule.scale, weights=weights), weights=weights))
    else:
        found = float(shares @ np.nan_to_num(known.base))
    return max(found, LEAST_BASE * known.base_loss)
