import numpy as np
import pytest

from raymlops.monitor.skill.clusters import Estimate
from raymlops.monitor.skill.estimated import (
    Calibration,
    error_on_labelled,
    expected_losses,
    warning,
)


def test_an_expected_loss_is_that_of_both_outcomes():
    """Brier's of .8 with a true chance of .7: .7 x .04 + .3 x .64."""
    assert expected_losses([0.7], if_true=[0.04], if_false=[0.64]) == pytest.approx([0.22])


def overconfident(number=4000, seed=4):
    """Return what a model says and what comes true: log odds are half of what it says."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 2, number)
    return 1 / (1 + np.exp(-odds)), rng.random(number) < 1 / (1 + np.exp(-odds / 2))


def test_a_calibration_is_measured_and_not_believed():
    """Said .88, log odds of 2, is true with log odds of 1: .73."""
    said, true = overconfident()
    found = Calibration.of(said, true, clusters=np.arange(len(said)))
    assert found.of_confidence([0.88])[0] == pytest.approx(0.73, abs=0.05)
    assert (np.diff(found.of_confidence(np.linspace(0, 1, 100))) >= 0).all()
    assert len(found.bins) == 20
    assert len(found.unlike) > 10


def test_a_bin_of_equal_outcomes_has_a_bound_all_the_same():
    """Of 40 requests in one bin none came true: at most 3 of 40."""
    found = Calibration.of(np.linspace(0, 0.1, 40), np.zeros(40), clusters=np.arange(40))
    assert (found.bins[-1].low, found.bins[-1].high) == (0.0, pytest.approx(3 / 20))


def test_few_requests_are_no_calibration():
    """39 of many rows."""
    with pytest.raises(ValueError, match="39 labelled requests, and a calibration needs 40"):
        Calibration.of(np.full(390, 0.5), np.zeros(390), clusters=np.repeat(np.arange(39), 10))


def test_one_confidence_is_one_bin():
    """A model that always says .3, of which .5 came true: log odds of 7 / 3 more, of .9 as of .3."""
    found = Calibration.of(np.full(100, 0.3), np.tile([0, 1], 50), clusters=np.arange(100))
    assert found.of_confidence([0.3, 0.9]) == pytest.approx([0.5, 21 / 22])


def test_the_error_on_labelled_rows_is_of_rows_that_were_not_fitted():
    """Of calibrated squared losses, near nothing; by the model's own confidence they would be .04 too low."""
    said, true = overconfident()
    seen = (said - true) ** 2

    def losses(probability):
        return expected_losses(probability, if_true=(1 - said) ** 2, if_false=said**2) - seen

    found = error_on_labelled(said, true, losses, clusters=np.arange(len(said)))
    assert abs(found.value) < 3 * found.error < 0.02
    assert losses(said).mean() < -0.03


def drawn(number, *, moved=0.0, slope=1.5, seed=5):
    """Return what a model says of rows, and what comes true: log odds are 1.5 x - 1.5 while nothing changed."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(number) + moved
    return 1 / (1 + np.exp(1.5 - 1.5 * x)), rng.random(number) < 1 / (1 + np.exp(1.5 - slope * x))


@pytest.mark.parametrize("moved", [-1.0, 1.0])
def test_rows_that_moved_are_estimated(moved):
    """A base rate of .26 becomes .10 or .51: mean squared loss within .01 of what came true."""
    said, true = drawn(8000)
    found = Calibration.of(said, true, clusters=np.arange(8000))
    said, true = drawn(20_000, moved=moved, seed=6)
    estimated = expected_losses(found.of_confidence(said), if_true=(1 - said) ** 2, if_false=said**2).mean()
    assert estimated == pytest.approx(((said - true) ** 2).mean(), abs=0.01)


def test_labels_that_mean_something_else_are_not_seen():
    """The other way round, by 1.5: the loss doubles and more, and confidence says what it said."""
    said, true = drawn(8000)
    found = Calibration.of(said, true, clusters=np.arange(8000))
    before = ((said - true) ** 2).mean()
    said, true = drawn(20_000, slope=-1.5, seed=6)
    estimated = expected_losses(found.of_confidence(said), if_true=(1 - said) ** 2, if_false=said**2).mean()
    assert estimated == pytest.approx(before, abs=0.01)
    assert ((said - true) ** 2).mean() > 2 * before


def test_a_warning_needs_more_than_the_margin_and_the_error():
    """.02 of error is at most .02 + 1.98 x .01 = .04; with a margin of .05, .09 is not enough."""
    error = Estimate(0.02, 0.01**2, 0.0, 100.0, 101.0)
    assert warning(0.289, before=0.2, error=error, margin=0.05) == ""
    assert warning(0.291, before=0.2, error=error, margin=0.05).startswith("by its confidence the loss is 0.291")
