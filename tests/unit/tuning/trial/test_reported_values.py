"""What is wrong with an epoch's metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raymlops.tuning.trial.reported_values import judged_metrics, numbers, refusal

NAMES = ("auc", "cost")


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"auc": 0.5, "cost": 1}, ""),
        ({"auc": np.float32(0.5), "cost": torch.tensor(1.0)}, ""),
        ({"auc": 0.5, "cost": 1, "other": math.nan}, ""),
        ({"auc": None, "cost": 1}, "auc is None after epoch 4; a metric is a number"),
        ({"auc": 0.5, "cost": 1, "note": "0.5"}, "note is '0.5' after epoch 4; a metric is a number"),
        (
            {"auc": 0.5, "cost": 1, "curve": torch.ones(2)},
            "curve is tensor([1., 1.]) after epoch 4; a metric is a number",
        ),
        ({"other": 1.0, "auc": 0.5}, "cost was not reported; reported: auc, other"),
        ({"auc": 0.5, "cost": -math.inf}, "cost is -inf after epoch 4"),
        ({"auc": torch.tensor(math.nan), "cost": 1}, "auc is nan after epoch 4"),
    ],
)
def test_each_metric_is_a_number_and_those_that_judge_are_there_and_finite(metrics, reason):
    assert refusal(metrics, names=NAMES, epoch=4) == reason


def test_only_plain_numbers_are_passed_on():
    found = numbers({"a": np.float32(0.5), "b": torch.tensor(2), "c": None, "d": "x", "e": True})
    assert found == {"a": 0.5, "b": 2.0, "e": 1.0}
    assert {type(value) for value in found.values()} == {float}


@pytest.mark.parametrize(
    ("sweep", "names"),
    [
        ({}, ("loss",)),
        ({"metric": "auc"}, ("auc", "loss")),
        ({"objectives": {"f1": "max", "cost": "min"}, "constraints": {"size": {}}}, ("f1", "cost", "loss", "size")),
        ({"metric": "auc", "resource": "tokens"}, ("auc", "loss", "tokens")),
    ],
)
def test_objectives_come_first_then_what_constrains_and_counts(sweep, names):
    section = {"metric": None, "objectives": {}, "constraints": {}, "resource": "epoch"} | sweep
    assert judged_metrics({"train": {"metric": "loss"}, "sweep": section}) == names
