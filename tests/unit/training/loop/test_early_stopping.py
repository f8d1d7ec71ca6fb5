"""Which epoch is best, and when patience ends."""

from __future__ import annotations

import math

from raymlops.training.loop.early_stopping import Best


def test_the_first_of_equal_values_is_the_best() -> None:
    """A tie is no improvement."""
    best = Best("validation/auc", "max")
    assert [best.update(epoch, value) for epoch, value in enumerate([0.7, 0.8, 0.8, 0.6], start=1)] == [
        True,
        True,
        False,
        False,
    ]
    assert (best.epoch, best.value) == (2, 0.8)


def test_patience_counts_epochs_without_improvement() -> None:
    """Best at epoch 2; with patience 2, epochs 3 and 4 exhaust it."""
    best = Best("validation/loss", "min", patience=2)
    exhausted = []
    for epoch, value in enumerate([1.0, 0.5, 0.6, 0.55], start=1):
        best.update(epoch, value)
        exhausted.append(best.exhausted)
    assert exhausted == [False, False, False, True]


def test_nan_is_never_the_best() -> None:
    """A first NaN does not stand in the way of what follows."""
    best = Best("validation/loss", "min")
    assert not best.update(1, math.nan)
    assert best.update(2, 3.0)
    assert not best.update(3, math.nan)
    assert best.epoch == 2
