"""What a model's quality probably is before labels come, by its own confidence. Pure. It warns, and decides nothing.

Of a row with the calibrated probability c of an event the loss is expected to be ``c L1 + (1 - c) L0``, where L1 and L0
are its losses if the event comes true or not; means of that are the expected loss or accuracy, and AUC is expected from
the weights c and 1 - c. So estimates NannyML (CBPE), see Bialek, Kuberski, Perrakis and Bifet, "Estimating model
performance under covariate shift without labels" (2024). Of several classes the event is that the answer is right.

It holds while p(event | answer) is what it was: when rows are drawn otherwise. It is blind to the change that matters
most, of what a label means for given features, and is why it decides nothing.

**Calibration** is measured on labelled rows, never taken from the model: the share of events in bins of equal mass,
with bounds by request, made monotone (Ayer, Brunk, Ewing, Reid and Silverman, 1955). By how much log odds are off is
linear between the bins, and beyond the outer ones what it is there: a share that stays would be wrong for rows that
moved to where few were labelled. Every estimate comes with its error on labelled rows which it was not fitted to:
requests are in two halves, and each half is estimated with the other one's calibration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import optimize, special

from raymlops.monitor.skill.clusters import FEWEST, Estimate, Floats, Moments, by_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BINS = 20
_IN_BIN = 20
"""Clusters that a bin has at least."""
_SURE = 1e-6
"""A model that says less counts as if it said this."""


@dataclass(frozen=True)
class Bin:
    """Labelled rows of about one confidence: its mean, the share of events with bounds at 95%, and the rows."""

    confidence: float
    share: float
    low: float
    high: float
    rows: float


@dataclass(frozen=True)
class Calibration:
    """The probability of an event by what a model says it is: its log odds, and by how much they are off, (knots,)."""

    odds: Floats
    off: Floats
    bins: tuple[Bin, ...] = ()

    @classmethod
    def of(cls, confidence: Any, events: Any, *, clusters: Any, weights: Any = None) -> Calibration:
        """Measure it on labelled rows: what the model said, whether the event came true, and of which request each is.

        Raises:
            ValueError: there are fewer than 40 requests.
        """
        said, true = np.asarray(confidence, dtype=np.float64), np.asarray(events, dtype=np.float64)
        w = np.ones(len(said)) if weights is None else np.asarray(weights, dtype=np.float64)
        names = np.asarray(clusters)
        if (count := len(np.unique(names))) < FEWEST:
            raise ValueError(f"{count} labelled requests, and a calibration needs {FEWEST}")
        wanted = min(BINS, count // _IN_BIN)
        order = np.argsort(said, kind="stable")
        passed = np.cumsum(w[order])
        # Equal confidences stay in one bin.
        edges = np.unique(said[order][np.searchsorted(passed, passed[-1] * np.arange(1, wanted) / wanted)])
        place = np.searchsorted(edges, said, "left")
        bins = tuple(_bin(said[here], true[here], names[here], w[here]) for here in _groups(place))
        weight = np.array([one.rows for one in bins])
        shares = np.asarray(optimize.isotonic_regression([one.share for one in bins], weights=weight).x)
        odds = special.logit(np.clip([one.confidence for one in bins], _SURE, 1 - _SURE))
        least = 0.5 / weight  # of none in a bin, half a row
        return cls(odds, special.logit(np.clip(shares, least, 1 - least)) - odds, bins)

    def of_confidence(self, confidence: Any) -> Floats:
        """Return the probability of the event for each row."""
        odds = special.logit(np.clip(np.asarray(confidence, dtype=np.float64), _SURE, 1 - _SURE))
        return np.asarray(special.expit(odds + np.interp(odds, self.odds, self.off)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, for the bundle."""
        bins = [[one.confidence, one.share, one.low, one.high, one.rows] for one in self.bins]
        return {"odds": self.odds.tolist(), "off": self.off.tolist(), "bins": bins}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Rebuild it from the data."""
        odds, off = (np.array(data[name], dtype=np.float64) for name in ("odds", "off"))
        return cls(odds, off, tuple(Bin(*map(float, one)) for one in data["bins"]))

    @property
    def unlike(self) -> tuple[Bin, ...]:
        """Return the bins in which the model's confidence is outside of the bounds of what came true."""
        return tuple(one for one in self.bins if not one.low <= one.confidence <= one.high)


def _groups(place: Any) -> list[Any]:
    return [place == at for at in np.unique(place)]


def _bin(said: Floats, true: Floats, clusters: Any, weights: Floats) -> Bin:
    totals, m = by_cluster(clusters, true, weights)
    found = Moments.of(totals, m).estimate()
    low, high = found.interval()
    share, rows = float(found.value), float(m.sum())
    # Of events that all came true, or none, the residuals show no chance: the rule of three does (Hanley, 1983).
    third = 3 / max(len(m), 3)
    if found.variance == 0:
        low, high = share - third, share + third
    return Bin(float(np.average(said, weights=weights)), share, max(0.0, float(low)), min(1.0, float(high)), rows)


def expected_losses(probability: Any, *, if_true: Any, if_false: Any) -> Floats:
    """Return the expected loss of each row by its losses if the event comes true and if it does not."""
    c = np.asarray(probability, dtype=np.float64)
    return np.asarray(c * np.asarray(if_true) + (1 - c) * np.asarray(if_false))


def error_on_labelled(
    confidence: Any, events: Any, losses: Callable[[Floats], Any], *, clusters: Any, weights: Any = None
) -> Estimate:
    """Return by how much estimated losses are above what came true, on labelled rows that were not fitted.

    ``losses`` takes the probabilities of all rows, (rows,), and returns the expected loss less the loss of each.

    Raises:
        ValueError: a half has fewer than 40 requests.
    """
    said, true = np.asarray(confidence, dtype=np.float64), np.asarray(events, dtype=np.float64)
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    half = np.random.default_rng(len(names)).permutation(len(names)) % 2  # ids may be of an order that means something
    w = np.ones(len(said)) if weights is None else np.asarray(weights, dtype=np.float64)
    probability = np.empty(len(said))
    for side in (0, 1):
        fitted, held = half[place] != side, half[place] == side
        found = Calibration.of(said[fitted], true[fitted], clusters=place[fitted], weights=w[fitted])
        probability[held] = found.of_confidence(said[held])
    totals, m = by_cluster(place, losses(probability), w)
    return Moments.of(totals, m).estimate()


def warning(estimated: float, *, before: float, error: Estimate, margin: float) -> str:
    """Warn where the estimated loss is above that at promotion by more than the margin and the estimate's error.

    Empty where it is not. ``error`` is ``error_on_labelled``: of its bounds the one further from 0 counts.
    """
    reach = max(abs(float(end)) for end in error.interval())
    if not estimated - before > margin + reach:
        return ""
    return (
        f"by its confidence the loss is {estimated:.3f}, and was {before:.3f} at promotion; such estimates are off by "
        f"{float(error.value):+.3f} on labelled rows, at most {reach:.3f}. Labels decide"
    )
