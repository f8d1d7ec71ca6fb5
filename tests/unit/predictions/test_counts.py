import json
import math

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


def test_losses_are_kept_as_sums_of_powers_of_gains():
    """Gains .25 and -.5 by blind losses of .5: 2, -.25, .0625 + .25, .015625 - .125, .00390625 + .0625."""
    losses = Losses.of([0.25, 1.0], [0.5, 0.5])
    assert losses.gains == (2.0, -0.25, 0.3125)
    assert (losses.count, losses.mean, losses.gain, losses.extremes) == (2, 0.625, -0.125, (-0.5, 0.25))
    assert math.isnan(Losses().mean)
    assert math.isnan(Losses().gain)


def test_losses_add_up_and_come_back():
    """What two replicas saw is what one would have seen; what an older raymlops wrote has none."""
    losses = Losses.of([0.25, 0.5, 0.5], [0.5] * 3)
    assert Losses.of([0.25, 0.5], [0.5] * 2) + Losses.of([0.5], [0.5]) == losses
    assert Losses.from_dict(json.loads(json.dumps(losses.to_dict()))) == losses
    assert Losses.from_dict({"7": 2, "note": "why"}) == Losses(note="why")
    assert losses.times(2) == losses + losses


def test_why_there_are_none_comes_back_too():
    """With how many are no measure."""
    losses = Losses.of([1.0, 1.0, 0.25], [0.5] * 3, clipped=2, note="why")
    assert Losses.from_dict(json.loads(json.dumps(losses.to_dict()))) == losses
    assert losses.mostly_clipped
    assert (losses + Losses.of([0.0] * 2, [0.5] * 2, note="other")).note == "why"
    assert not (losses + Losses.of([0.0] * 2, [0.5] * 2)).mostly_clipped
    assert not Losses().mostly_clipped
