"""The digits recipe: its contract, and a split that is stratified and never moves."""

from __future__ import annotations

import numpy as np

from raymlops.recipes.digits import Digits
from raymlops.testing import RecipeContract


class TestDigitsContract(RecipeContract):
    recipe = Digits
    config = {"channels": 4}  # noqa: RUF012 - the contract declares the class variable


def test_split_holds_every_image_once_and_each_digit_in_its_share():
    """1,797 images: 15% validation and 20% test of each digit, rounded digit by digit."""
    splits = Digits().datasets()
    sizes = [len(part["digit"]) for part in (splits.train, splits.validation, splits.test)]
    assert sizes == [1168, 269, 360]
    counts = [np.bincount(part["digit"], minlength=10) for part in (splits.validation, splits.test)]
    total = np.bincount(np.concatenate([part["digit"] for part in (splits.train, splits.validation, splits.test)]))
    assert np.abs(counts[0] / total - 0.15).max() < 0.01
    assert np.abs(counts[1] / total - 0.20).max() < 0.01


def test_split_does_not_move_with_the_seed_of_a_run():
    """Two versions of a model are judged on the same images."""
    first, second = Digits(seed=0).datasets(), Digits(seed=1).datasets()
    np.testing.assert_array_equal(first.test["image"], second.test["image"])
