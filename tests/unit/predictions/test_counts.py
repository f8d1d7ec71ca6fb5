import json
import math

import pytest

from raymlops.predictions.counts import Counts, Losses


def test_counts_of_replicas_add_up():
    """Each field is summed, and taking one replica away again leaves the other."""
    one, other = Counts(10, 1, 2, 3, 0.5), Counts(5, 1, 0, 0, 0.25)
    assert one + other == Counts(15, 2, 2, 3, 0.75)
    assert one + other - other == one


def test_a_replica_that_started_anew_counts_nothing_negative():
    """Fewer than before is 0 since then."""
    assert Counts(3, 0, 0, 0, 0.1) - Counts(10, 1, 2, 3, 0.5) == Counts()


def test_counts_of_another_version_of_raymlops_are_read():
    """Unknown keys are ignored, missing and null ones are 0, and JSON brings them back."""
    assert Counts.from_dict({"requests": 4, "errors": None, "colour": "red"}) == Counts(requests=4)
    assert Counts.from_dict(json.loads(json.dumps(Counts(1, 2, 3, 4, 0.5).to_dict()))) == Counts(1, 2, 3, 4, 0.5)


def test_losses_are_kept_in_hundredths():
    """0.254 and 0.25 are one level; outside is the nearer end, NaN the worst: (0.25 + 0.25 + 0 + 1 + 1) / 5 = 0.5."""
    losses = Losses.of([0.254, 0.25, -1.0, 7.0, math.nan])
    assert losses.levels == ((0, 1), (25, 2), (100, 2))
    assert (losses.count, losses.mean) == (5, 0.5)
    assert math.isnan(Losses().mean)


def test_losses_add_up_and_come_back():
    """What two replicas saw is what one would have seen; damaged levels are left out."""
    assert Losses.of([0.1, 0.2]) + Losses.of([0.2]) == Losses.of([0.1, 0.2, 0.2])
    losses = Losses.of([0.1, 0.2, 0.2])
    assert Losses.from_dict(json.loads(json.dumps(losses.to_dict()))) == losses
    assert Losses.from_dict({"7": 2, "101": 1, "x": 1, "8": -3, "9": None}) == Losses(((7, 2),))


def test_why_there_are_none_comes_back_too():
    """With how many are no measure; what an older raymlops wrote has neither."""
    losses = Losses.of([1.0, 1.0, 0.2], clipped=2, note="why")
    assert Losses.from_dict(json.loads(json.dumps(losses.to_dict()))) == losses
    assert losses.mostly_clipped
    assert losses + Losses.of([0.0] * 2, note="other") == Losses.of([1.0, 1.0, 0.2, 0.0, 0.0], clipped=2, note="why")
    assert not (losses + Losses.of([0.0] * 2)).mostly_clipped
    assert not Losses().mostly_clipped


def test_a_mean_of_a_sample_is_by_weight():
    """(1 x 0.2 + 10 x 0.4) / 11 = 0.3818; with two of weight 1 and loss 1 it is (4.2 + 2) / 13; counts stay counts."""
    sample = Losses.of([0.2, 0.4], weights=[1.0, 10.0])
    assert sample.mean == pytest.approx(4.2 / 11)
    both = sample + Losses.of([1.0, 1.0])
    assert (both.count, both.mean) == (4, pytest.approx(6.2 / 13))
    assert Losses.from_dict(json.loads(json.dumps(both.to_dict()))) == both
    assert Losses.of([0.2, 0.4], weights=[1.0, 1.0]) == Losses.of([0.2, 0.4])
    assert "weighted" not in Losses.of([0.2]).to_dict()
