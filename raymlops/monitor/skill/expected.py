"""A metric as skill, and what it would be had the model stayed as it was. Pure.

**Skill** is the way from a reference predictor on the same rows to perfect answers: ``(metric - reference) /
(perfect - reference)``, of a loss ``1 - loss / reference loss`` (Murphy, "Skill scores based on the mean square error",
Monthly Weather Review 116, 1988). The reference predictor answers the base rate of the window's labels, or is a frozen
model. 0 is as good as it, 1 perfect.

**What skill should be.** Base rates move, and skill moves with them though no model changed: of a model that gives
positives .7 and negatives .3, the skill by Brier's score falls from .64 to 0 while the share of positives goes from .5
to .1. What stays where labels alone move is how the answers of each class are distributed, p(answer | label): label
shift, as in Saerens, Latinne and Decaestecker, "Adjusting the outputs of a classifier to new a priori probabilities",
Neural Computation 14 (2002). So with the mean loss L_c of class c on the reference rows, the same model has at the
shares q_c of any window

    expected loss = sum over c of q_c L_c

exactly: direct standardisation, as epidemiology compares death rates at one age structure. The difference of a row,
its loss less L of its label, has the mean 0 while the model is as it was, whatever the shares and however they move
from day to day. So its sums may be looked at every day. Nor is it moved by labels that are sent for one class sooner or
oftener than for another. Any metric that comes from sums is treated alike: the reference's sums of each class, weighted
to the window's counts, give the expected metric; AUC, which is of the distributions of the classes alone, stays.

A number as label is binned at quantiles of the reference rows; within a bin it may still move.

**Where it errs.** Where rows move and p(label | features) stays, answers of each class move too. In simulations the
expected loss was then too high, whether the base rate rose or fell: no alarm, and as much of a real loss is hidden. The
skill by the base rate hardly moves there, and falls where labels shift; so it is shown beside, and does not decide.

**Which reference rows.** Those on which the version was registered and that chose nothing: test rows of the gate, not
the validation rows that early stopping picked the best of. Their own error counts, as the same for all windows. Few
rows of a class do not show it: one shows no spread at all, and ten hardly the answers of which there is one in ten. So
it is added that rows as lossy as any may be a share s of the class of which n rows would have shown none with
the probability p = (1 - s)^n of an error of the reference: that is the rule of three (Hanley and Lippman-Hand, JAMA
249, 1983). It is next to nothing beside the spread of some hundred rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from raymlops.monitor.skill.clusters import Floats, Moments, by_cluster, pseudo_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Codes = npt.NDArray[np.int64]
Rule = Literal["log", "squared", "top", "class"]

BINS = 10
"""Of numbers as labels."""
MISSED = 0.0025
"""With which probability reference rows of a class may have none of those that are answered worst."""


@dataclass(frozen=True)
class Expectation:
    """The mean loss of reference rows by their label.

    Attributes:
        means: Of shape (classes,); NaN for a class without rows.
        shares: Of the reference's labels, (classes,).
        covariance: Of the means, by cluster, (classes, classes).
    """

    means: Floats
    shares: Floats
    covariance: Floats

    @classmethod
    def of(
        cls, codes: Any, losses: Any, *, clusters: Any, classes: int, weights: Any = None, most: float = 1.0
    ) -> Expectation:
        """Measure it on rows: the number of their label from 0, their loss, and of which cluster each is.

        ``most`` is the largest loss there may be.
        """
        here = np.asarray(codes)[:, None] == np.arange(classes)
        values = np.stack([here, here * np.asarray(losses, dtype=np.float64)[:, None]], axis=1)
        totals, _ = by_cluster(clusters, values, weights)
        numbers, sums = totals.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            means = sums / numbers
            # What each cluster adds to each mean; a cluster with rows of two classes relates their means.
            parts = np.where(numbers > 0, (totals[:, 1] - means * totals[:, 0]) / numbers, 0.0)
            unseen = 1 - MISSED ** (1 / here.sum(axis=0))
            error = np.where(numbers > 0, unseen * np.maximum(most - means, 0.0) / -special.ndtri(MISSED), 0.0)
        count = len(totals)
        covariance = parts.T @ parts * (count / max(count - 1, 1)) * few_blocks(count) ** 2 + np.diag(error**2)
        return cls(means, numbers / numbers.sum(), covariance)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, for the bundle; a class without rows has null."""
        means = [None if math.isnan(mean) else mean for mean in self.means.tolist()]
        return {"means": means, "shares": self.shares.tolist(), "covariance": self.covariance.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Expectation:
        """Rebuild it from the data."""
        return cls(*(np.array(data[name], dtype=np.float64) for name in ("means", "shares", "covariance")))

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Return which classes the reference has rows of: other labels cannot be judged."""
        return np.isfinite(self.means)

    def at(self, shares: Any) -> tuple[float, float]:
        """Return the loss that is expected at these shares of labels, and its standard error."""
        q = np.asarray(shares, dtype=np.float64)
        return float(q @ np.where(self.known, self.means, 0.0)), math.sqrt(max(float(q @ self.covariance @ q), 0.0))

    def excess(self, codes: Any, losses: Any) -> Floats:
        """Return by how much each row's loss is above that of the reference rows with its label."""
        return np.asarray(np.asarray(losses, dtype=np.float64) - self.means[np.asarray(codes)])


@dataclass(frozen=True)
class Window:
    """The skill of a window of labelled rows, and what of it was lost.

    Attributes:
        loss: The mean loss.
        reference: That of the reference predictor on the same rows.
        expected: The loss had the model stayed as it was.
        lost: Sums of what was lost of skill, by cluster.
        error: The standard error of ``expected`` in skill, which is no chance of the window's.
        losses: Sums of the losses, by cluster, for bounds of the metric as it is.
    """

    loss: float
    reference: float
    expected: float
    lost: Moments
    error: float = 0.0
    losses: Moments = field(default_factory=Moments.none)

    def interval(self, level: float = 0.05) -> tuple[float, float]:
        """Return bounds of the skill that was lost, looked at once, with the error of the reference rows."""
        found = self.lost.estimate()
        low, high = replace(found, variance=found.variance + self.error**2).interval(level)
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data of some thirty numbers, whatever the rows of the window."""
        sums = {name: getattr(self, name).sums.tolist() for name in ("lost", "losses")}
        return {name: getattr(self, name) for name in ("loss", "reference", "expected", "error")} | sums

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Window:
        """Rebuild it from the data."""
        lost, losses = (Moments(np.array(data[name], dtype=np.float64)) for name in ("lost", "losses"))
        loss, reference, expected, error = (float(data[name]) for name in ("loss", "reference", "expected", "error"))
        return cls(loss, reference, expected, lost, error, losses)

    @property
    def skill(self) -> float:
        """Return the skill of the window."""
        return 1 - self.loss / self.reference

    @property
    def expected_skill(self) -> float:
        """Return the skill had the model stayed as it was."""
        return 1 - self.expected / self.reference


def window_skill(
    codes: Any, losses: Any, *, clusters: Any, expectation: Expectation, reference: float, weights: Any = None
) -> Window:
    """Return the skill of labelled rows, at least one, each with a label that ``expectation`` knows.

    ``reference`` is the mean loss of the reference predictor on the same rows: ``base_rate_loss`` of their shares, or
    the mean of a frozen model's losses. It must be above 0: labels of one class alone have no skill.
    """
    values = np.stack([expectation.excess(codes, losses), np.asarray(losses, dtype=np.float64)], axis=1)
    totals, m = by_cluster(clusters, values, weights)
    shares = label_shares(codes, classes=len(expectation.means), weights=weights)
    expected, error = expectation.at(shares)
    lost, whole = Moments.of(totals[:, 0], m * reference), Moments.of(totals[:, 1], m)
    return Window(float(totals[:, 1].sum() / m.sum()), reference, expected, lost, error / reference, whole)


def label_shares(codes: Any, *, classes: int, weights: Any = None) -> Floats:
    """Return the share of each label."""
    counts = np.bincount(np.asarray(codes), weights, minlength=classes).astype(np.float64)
    return np.asarray(counts / counts.sum())


def base_rate_loss(shares: Any, rule: Rule) -> float:
    """Return the mean loss of one who answers the shares of the labels, by the rules of ``answer_loss`` and log loss.

    ``squared`` is Brier's, half the squared distance: of two classes q (1 - q). ``top`` is that of the likeliest class
    with its probability, ``class`` of the class alone, ``log`` in nats.
    """
    q = np.asarray(shares, dtype=np.float64)
    if rule == "log":
        return float(-(q * np.log(np.where(q > 0, q, 1.0))).sum())
    if rule == "squared":
        return float((1 - (q * q).sum()) / 2)
    return float((1 - q.max() ** 2) / 2) if rule == "top" else float(1 - q.max())


def median_losses(labels: Any, *, scale: float, weights: Any = None) -> Floats:
    """Return the losses of one who answers the median of numbers: absolute errors by ``scale``, at most 1.

    No number of a window moves it far, as one of a heavy tail moves the mean: then nobody would be worse than it.
    """
    y = np.asarray(labels, dtype=np.float64)
    median = np.quantile(y, 0.5, weights=weights, method="inverted_cdf")
    return np.asarray(np.minimum(np.abs(y - median) / scale, 1.0))


def label_edges(labels: Any, *, bins: int = BINS) -> Floats:
    """Return the inner edges of bins of numbers, at quantiles of the reference's labels."""
    inner = np.quantile(np.asarray(labels, dtype=np.float64), np.arange(1, bins) / bins)
    return np.asarray(np.unique(inner), dtype=np.float64)


def metric_lost(
    window: Floats,
    reference: Floats,
    *,
    metric: Callable[[Floats], Any],
    base: Callable[[Floats], Any],
    perfect: float,
) -> tuple[Moments, float]:
    """Return what was lost of the skill by any metric of sums, by cluster, and the error that the reference adds.

    Args:
        window: Sums over rows of shape (clusters, classes, sums), of which the first counts rows.
        reference: The same of blocks of reference rows, (blocks, classes, sums).
        metric: Takes sums over all classes, (many, sums), to values, (many,).
        base: Takes counts of labels, (many, classes), to the metric of the reference predictor, (many,).
        perfect: The best value of the metric.
    """
    measured, whole = reference.sum(axis=0)[None], window.sum(axis=0)[None]
    scale = float(perfect - base(whole[..., 0])[0])

    def lost(sums: Floats, known: Floats) -> Any:
        """Compare sums (many, classes, sums) with those of the reference at the same counts."""
        counts = sums[..., :1]
        means = known / np.where(known[..., :1] > 0, known[..., :1], np.nan)
        expected = np.where(counts > 0, counts * means, 0.0).sum(axis=-2)
        return (metric(expected) - metric(sums.sum(axis=-2))) / scale

    ours = pseudo_values(window, lambda sums: lost(sums, measured))
    theirs = pseudo_values(reference, lambda known: lost(np.broadcast_to(whole, (len(known), *whole.shape[1:])), known))
    return Moments.of(ours), float(Moments.of(theirs).estimate().error) * few_blocks(len(theirs))


def few_blocks(count: int) -> float:
    """Return by how much an error that so many blocks show is to be larger: Student's quantile by the normal one."""
    return float(special.stdtrit(max(count - 1, 1), MISSED) / special.ndtri(MISSED))


def recipe_metric(
    finalize: Callable[[Mapping[str, Any]], Mapping[str, float]], name: str, *, shapes: Mapping[str, Sequence[int]]
) -> Callable[[Floats], Floats]:
    """Return a recipe's metric as a function of sums laid side by side in the order of ``shapes``."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1]

    def metric(sums: Floats) -> Floats:
        values = np.empty(len(sums))
        for at, row in enumerate(sums):
            parts = zip(shapes.items(), np.split(row, ends), strict=True)
            values[at] = finalize({key: part.reshape(shape) for (key, shape), part in parts})[name]
        return values

    return metric
