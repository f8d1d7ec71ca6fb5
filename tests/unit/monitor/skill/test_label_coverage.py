import math

import numpy as np
import pytest

from raymlops.monitor.skill.label_coverage import coverage, selection

NAN = math.nan


def test_coverage_is_of_requests_that_are_old_enough():
    """Of four at risk one is labelled at 2; one is 3 old; of two left one is labelled at 4: 1 - .75 x .5 = .625."""
    found = coverage([0, 0, 0, 7], [2, 4, NAN, NAN], now=10, ages_s=(1, 2, 4, 10, 11))
    assert found.shares[:4] == pytest.approx((0, 0.25, 0.625, 0.625))
    assert math.isnan(found.shares[4])
    assert (found.requests, found.labelled) == (4, 2)
    assert found.lags_s == (4, 4)  # half of .625 is reached at 4, and at 2 only .25


def test_a_label_that_is_still_to_come_is_none():
    """Asked at 0 and labelled at 12: at 10 nothing is known of it."""
    found = coverage([0, 0], [12, 5], now=10, ages_s=(10,))
    assert found.labelled == 1
    assert found.shares == (0.5,)


def test_requests_of_a_sample_stand_for_others():
    """One of weight 3 with a label beside one without: three quarters."""
    found = coverage([0, 0], [1, NAN], now=10, ages_s=(5,), weights=[3, 1])
    assert found.shares == pytest.approx((0.75,))


def test_no_request_has_no_coverage():
    """Not 0 and not 1."""
    found = coverage([], [], now=10, ages_s=(5,))
    assert math.isnan(found.shares[0])
    assert all(math.isnan(lag) for lag in found.lags_s)


def drawn(*, apart=0.0, wider=1.0, requests=2000, seed=1):
    """Return answers, whether each has a label (half of them), ages and requests."""
    rng = np.random.default_rng(seed)
    has = rng.random(requests) < 0.5
    scores = rng.standard_normal(requests) * np.where(has, wider, 1.0) + apart * has
    return {"scores": scores, "labelled": has, "ages": rng.integers(0, 7, requests), "clusters": np.arange(requests)}


def test_labelled_answers_that_are_like_the_others_pass():
    """Half of 2,000, at random."""
    found = selection(**drawn())
    assert not found.differs
    assert abs(found.location) < 0.15


def test_labelled_answers_that_are_higher_do_not_pass():
    """By one standard deviation: ranks differ by about .9 of theirs."""
    found = selection(**drawn(apart=1.0))
    assert found.differs
    assert found.location > 0.7
    assert found.reason.startswith("labelled answers are unlike unlabelled ones of the same age")


def test_labelled_answers_of_another_spread_do_not_pass():
    """Only sure cases are labelled: as high on average, twice as far out."""
    found = selection(**drawn(wider=2.0))
    assert found.differs
    assert found.spread > 0.3
    assert abs(found.location) < 0.15


def test_small_differences_pass_however_many_show_them():
    """.1 standard deviations among 40,000 requests are certain, and small."""
    found = selection(**drawn(apart=0.1, requests=40_000))
    assert found.p < 1e-6
    assert not found.differs


def test_labels_that_come_late_are_no_difference():
    """Answers rise from day to day and old days are labelled: within a day nothing differs."""
    rng = np.random.default_rng(2)
    ages = rng.integers(0, 7, 4000)
    has = rng.random(4000) < ages / 8
    found = selection(rng.standard_normal(4000) + ages, has, ages=ages, clusters=np.arange(4000))
    assert not found.differs
    assert abs(found.location) < 0.1


def test_rows_of_a_request_are_one():
    """Ten copies of each row of 60 requests are no more certain than the 60."""
    one = drawn(apart=0.5, requests=120)
    many = {name: np.repeat(values, 10) for name, values in one.items()}
    assert selection(**many).p == pytest.approx(selection(**one).p, rel=1e-6)


def test_nothing_is_compared_where_few_lack_a_label():
    """All but ten have one."""
    has = np.arange(500) >= 10
    found = selection(np.arange(500.0), has, ages=np.zeros(500), clusters=np.arange(500))
    assert not found.differs
    assert found.reason.startswith("10 requests with or without a label")


def test_ranks_are_within_the_age_and_ties_are_in_their_middle():
    """An age with two equal answers, labelled and not: both have rank .5, and differ by nothing."""
    count = 100
    found = selection(
        np.repeat([1.0, 2.0], count),
        np.tile([True, False], count),
        ages=np.repeat([0, 1], count),
        clusters=np.arange(2 * count),
    )
    assert found.location == 0
