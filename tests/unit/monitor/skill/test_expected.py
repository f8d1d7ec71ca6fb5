import json

import numpy as np
import pytest

from raymlops.monitor.skill.expected import (
    Expectation,
    Window,
    base_rate_loss,
    label_edges,
    label_shares,
    median_losses,
    metric_lost,
    recipe_metric,
    window_skill,
)
from raymlops.monitor.skill.verdict import judge

KNOWN = Expectation.of([0, 0, 1, 1], [0.1, 0.3, 0.5, 0.7], clusters=[0, 1, 2, 3], classes=2, most=0.0)
"""As if two rows of a class showed it well."""


def test_an_expectation_is_of_the_shares_of_labels():
    """Mean losses .2 and .6: .4 at equal shares, .24 at one in ten."""
    assert KNOWN.means == pytest.approx([0.2, 0.6])
    assert KNOWN.at([0.5, 0.5])[0] == pytest.approx(0.4)
    assert KNOWN.at([0.9, 0.1])[0] == pytest.approx(0.24)


def test_an_expectation_has_the_error_of_its_reference():
    """Of a mean (.01 + .01) / 4 by 4 / 3, and both means at a quarter each; four blocks have Student's quantile."""
    few = 7.45332 / 2.80703  # of .0025, with three degrees of freedom
    assert KNOWN.at([0.5, 0.5])[1] == pytest.approx(few * np.sqrt(2 * 0.25 * 0.005 * 4 / 3), rel=1e-5)
    assert KNOWN.at([1, 0])[1] == pytest.approx(few * np.sqrt(0.005 * 4 / 3), rel=1e-5)


def test_rows_of_one_request_are_one_draw_of_the_reference():
    """Both classes' means rise together where requests hold one row of each that go wrong together."""
    together = Expectation.of([0, 1, 0, 1], [0.1, 0.5, 0.3, 0.7], clusters=[0, 0, 1, 1], classes=2, most=0.0)
    few = 127.3213 / 2.80703  # Student's quantile of .0025 with one degree of freedom, by the normal one
    assert together.covariance == pytest.approx(np.full((2, 2), 0.005 * 2 * few**2), rel=1e-5)


def test_few_rows_of_a_class_leave_open_what_they_did_not_show():
    """One may be any answer, up to the worst; of 100 equal ones 1 - .0025^(1/100) = .0581 of the class may be lost."""
    found = Expectation.of([0] * 100 + [1], [0.0] * 100 + [0.4], clusters=np.arange(101), classes=2)
    reach = 2.80703  # the normal quantile of .0025
    assert reach * found.at([1, 0])[1] == pytest.approx(0.0581, abs=1e-4)
    assert reach * found.at([0, 1])[1] == pytest.approx(0.9975 * 0.6, rel=1e-5)
    logs = Expectation.of([0], [0.4], clusters=[0], classes=1, most=3.4)
    assert reach * logs.at([1])[1] == pytest.approx(0.9975 * 3.0, rel=1e-5)


def test_a_model_as_it_was_is_not_called_worse_for_a_class_with_one_test_row():
    """That row was answered well by chance; one of 1,000 labels is of its class, and lost are .48 of skill."""
    codes, losses = np.repeat([0, 1], [999, 1]), np.repeat([0.001, 0.02], [999, 1])
    known = Expectation.of(codes, losses, clusters=np.arange(1000), classes=2)
    labels = np.tile(np.repeat([0, 1], [999, 1]), 10)
    found = window_skill(
        labels, np.where(labels, 0.5, 0.001), clusters=np.arange(10_000), expectation=known, reference=0.001
    )
    assert found.lost.estimate().value == pytest.approx(0.48, rel=1e-6)
    assert judge([found] * 60).outcome == "not enough labels"


def test_a_class_without_rows_is_not_known():
    """Of three classes, the last has none."""
    found = Expectation.of([0, 1], [0.2, 0.4], clusters=[0, 1], classes=3)
    assert found.known.tolist() == [True, True, False]
    assert found.at([0.5, 0.5, 0])[0] == pytest.approx(0.3)


def test_a_base_rate_that_moves_is_no_skill_lost():
    """Losses .2 and .6 of the classes, as they were, at shares that were not: skill falls, and nothing is lost."""
    codes = np.array([0] * 9 + [1])
    losses = np.where(codes, 0.6, 0.2)
    reference = base_rate_loss(label_shares(codes, classes=2), "log")
    found = window_skill(codes, losses, clusters=np.arange(10), expectation=KNOWN, reference=reference)
    assert found.loss == pytest.approx(0.24)
    assert found.skill == pytest.approx(1 - 0.24 / (-0.9 * np.log(0.9) - 0.1 * np.log(0.1)))
    assert found.expected_skill == pytest.approx(found.skill)
    assert found.lost.estimate().value == pytest.approx(0.0, abs=1e-12)


def test_skill_that_was_lost_is_what_losses_of_each_class_rose_by():
    """.05 more in either class, of a reference loss of .25: a fifth, weighted or not."""
    codes, losses = np.array([0, 0, 1, 1]), np.array([0.25, 0.25, 0.65, 0.65])
    found = window_skill(codes, losses, clusters=[0, 1, 2, 3], expectation=KNOWN, reference=0.25, weights=[1, 2, 3, 4])
    assert found.lost.estimate().value == pytest.approx(0.2)
    assert found.expected_skill - found.skill == pytest.approx(0.2)
    assert found.loss == found.losses.estimate().value == pytest.approx((3 * 0.25 + 7 * 0.65) / 10)


def test_windows_and_expectations_are_kept_as_json():
    """Numbers alone, a class without rows as null; what is read back says the same."""
    found = window_skill([0, 0, 1], [0.1, 0.2, 0.9], clusters=[0, 1, 2], expectation=KNOWN, reference=0.25)
    back = Window.from_dict(json.loads(json.dumps(found.to_dict())))
    assert back.interval() == found.interval()
    assert back.losses.sums.tolist() == found.losses.sums.tolist()
    known = Expectation.of([0, 1, 1], [0.2, 0.4, 0.5], clusters=[0, 1, 2], classes=3)
    again = Expectation.from_dict(json.loads(json.dumps(known.to_dict())))
    assert again.known.tolist() == [True, True, False]
    assert again.at([0.5, 0.5, 0]) == known.at([0.5, 0.5, 0])


def test_the_interval_of_a_window_has_the_error_of_the_reference():
    """Rows that do not vary leave that alone: .0577 by .25 at shares of a half, 3.182 times at 3 degrees."""
    found = window_skill([0, 0, 1, 1], [0.2, 0.2, 0.6, 0.6], clusters=[0, 1, 2, 3], expectation=KNOWN, reference=0.25)
    low, high = found.interval(0.05)
    assert high == pytest.approx(3.18245 * 7.45332 / 2.80703 * np.sqrt(0.005 * 4 / 6) / 0.25, rel=1e-4)
    assert low == pytest.approx(-high)


@pytest.mark.parametrize(
    ("rule", "loss"), [("log", 0.562335), ("squared", 0.1875), ("top", (1 - 0.75**2) / 2), ("class", 0.25)]
)
def test_the_base_rate_has_a_loss_by_each_rule(rule, loss):
    """Of a quarter: -.25 ln .25 - .75 ln .75; .25 x .75; the likelier class with .75; that class alone."""
    assert base_rate_loss([0.75, 0.25], rule) == pytest.approx(loss)


def test_the_median_of_numbers_has_losses():
    """0, 2 and 10 by 5: errors 2, 0 and 8, the last clipped; where 0 weighs as much as both others it is the median."""
    assert median_losses([0.0, 2.0, 10.0], scale=5.0) == pytest.approx([0.4, 0.0, 1.0])
    assert median_losses([10.0, 0.0, 2.0], scale=5.0, weights=[1, 2, 1]) == pytest.approx([1.0, 0.0, 0.4])


def test_one_number_of_a_heavy_tail_moves_no_reference():
    """Of 101 numbers from 0 to 100 the losses are .253 on average; with 1,500,000 among them hardly more."""
    numbers = np.arange(101.0)
    assert median_losses(numbers, scale=100.0).mean() == pytest.approx(0.2525, abs=1e-4)
    assert median_losses(np.append(numbers, 1.5e6), scale=100.0).mean() == pytest.approx(0.2598, abs=1e-4)


def test_numbers_as_labels_are_binned_at_quantiles():
    """0 to 100 in four bins; of equal numbers one edge is left."""
    assert label_edges(np.arange(101.0), bins=4) == pytest.approx([25, 50, 75])
    assert label_edges(np.zeros(9), bins=4).tolist() == [0.0]


def rows_of(right, number):
    """Return sums (1, right) of rows, whether each is right."""
    return [[1.0, float(at < right)] for at in range(number)]


def sums(by_class):
    """Return one cluster a row, of shape (clusters, classes, 2)."""
    found = []
    for label, rows in enumerate(by_class):
        found += [[row if at == label else [0.0, 0.0] for at in range(len(by_class))] for row in rows]
    return np.array(found)


def accuracy(total):
    return total[:, 1] / total[:, 0]


def largest(counts):
    return counts.max(axis=-1) / counts.sum(axis=-1)


def test_any_metric_of_sums_is_compared_at_the_labels_of_the_window():
    """Right in .9 of class 0 and .5 of class 1, as before: accuracy .7 at equal shares, .8 expected at 3 to 1."""
    reference, window = sums([rows_of(9, 10), rows_of(5, 10)]), sums([rows_of(27, 30), rows_of(5, 10)])
    lost, error = metric_lost(window, reference, metric=accuracy, base=largest, perfect=1.0)
    assert lost.estimate().value == pytest.approx(0.0, abs=0.01)  # the jackknife takes out a bias of 1 / n
    # In accuracy sqrt(.75^2 .09 / 10 + .25^2 .25 / 10), nearly, by 1 - .75; 20 rows have Student's quantile.
    few = 3.17372 / 2.80703
    assert error == pytest.approx(few * np.sqrt(0.75**2 * 0.009 + 0.25**2 * 0.025) / 0.25, rel=0.1)
    worse = sums([rows_of(24, 30), rows_of(4, 10)])
    lost, _ = metric_lost(worse, reference, metric=accuracy, base=largest, perfect=1.0)
    assert lost.estimate().value == pytest.approx((0.8 - 0.7) / 0.25, abs=0.02)


def test_a_metric_of_a_recipe_takes_its_own_sums():
    """Laid side by side, a scalar and a histogram, they come back by name and shape."""

    def finalize(totals):
        return {"mean": float(totals["loss"]) / float(totals["bins"].sum())}

    metric = recipe_metric(finalize, "mean", shapes={"loss": (), "bins": (2,)})
    assert metric(np.array([[3.0, 1.0, 2.0], [4.0, 1.0, 0.0]])).tolist() == [1.0, 4.0]
