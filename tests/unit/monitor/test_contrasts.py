"""Contrasts of binned counts, by hand."""

import math

import numpy as np
import pytest

from raymlops.monitor.contrasts import Contrast, contrasts, polynomials, share_of, stabilised


def counts(*rows):
    return np.array(rows, dtype=np.int64)


def test_two_equal_bins_differ_in_location_alone():
    """Mid-ranks .25 and .75, so the only standardised score is -1 and 1."""
    assert polynomials(np.array([5, 5])) == pytest.approx(np.array([[-1, 1]]))


def test_three_bins_have_a_location_and_a_scale():
    """Shares 1/4, 1/2, 1/4: location -r, 0, r with r = sqrt 2 has mean square 2/4 + 2/4, scale 1, -1, 1 has mean 0."""
    root = math.sqrt(2)
    assert polynomials(np.array([1, 2, 1])) == pytest.approx(np.array([[-root, 0, root], [1, -1, 1]]))


def test_polynomials_are_orthonormal_under_the_reference():
    """Also with ties of very unlike size and with empty bins."""
    reference = np.array([0, 700, 1, 20, 0, 5, 40, 300, 3, 0])
    scores = polynomials(reference)
    assert (scores * reference / reference.sum()) @ scores.T == pytest.approx(np.eye(3), abs=1e-9)
    assert scores @ reference == pytest.approx(np.zeros(3), abs=1e-6)


def test_a_bin_that_the_reference_has_not_scores_by_its_rank():
    """Below everything is less than what is lowest, above everything more than what is highest."""
    location = polynomials(np.array([0, 10, 10, 10, 10, 0]))[0]
    assert list(np.argsort(location)) == [0, 1, 2, 3, 4, 5]


def test_shares_become_angles_of_variance_one_over_rows():
    """3 of 10: 2 asin sqrt(3.375 / 10.75) = 1.1895; a binomial of 400 at .05 and at .5 has a variance of 1 / 400."""
    assert stabilised(np.array(3), np.array(10)) == pytest.approx(1.18953, abs=1e-4)
    rng = np.random.default_rng(0)
    for share in (0.05, 0.5):
        angles = stabilised(rng.binomial(400, share, 20_000), np.full(20_000, 400))
        assert angles.var() == pytest.approx(1 / 400, rel=0.05)
        assert share_of(angles).mean() == pytest.approx(share, abs=0.003)


def test_a_window_is_the_mean_of_its_scores_beside_its_nulls():
    """Reference 1, 2, 1; a window of 4 rows in the last bin: sqrt 2 and 1; its 4 nulls of 8 are an angle of pi / 2."""
    values, meanings = contrasts(
        counts([1, 2, 1], [0, 0, 4]), np.array([0, 4]), reference=np.array([1, 2, 1]), ordered=True
    )
    assert [meaning.kind for meaning in meanings] == ["location", "scale", "nulls"]
    assert values[0, :2] == pytest.approx([0, 0])
    assert values[1] == pytest.approx([math.sqrt(2), 1, math.pi / 2])


def test_a_column_without_nulls_has_no_contrast_for_them():
    """There is nothing to compare, and one column less to look at."""
    _, meanings = contrasts(counts([5, 5]), np.array([0]), reference=np.array([5, 5]), ordered=True)
    assert meanings == (Contrast("location"),)


def test_a_window_all_null_has_moved_in_its_nulls_alone():
    """Of its values nothing is known: they are taken to be as ever."""
    values, meanings = contrasts(counts([5, 5], [0, 0]), np.array([0, 10]), reference=np.array([5, 5]), ordered=True)
    assert values[1, 0] == 0
    assert meanings[-1].kind == "nulls"
    values, _ = contrasts(
        counts([500, 300, 200], [0, 0, 0]), np.array([0, 10]), reference=np.array([500, 300, 200]), ordered=False
    )
    assert values[1, :3] == pytest.approx(values[0, :3])


def test_a_number_that_was_always_the_same_is_a_share():
    """One bin that holds everything: what is new lowers its share."""
    values, meanings = contrasts(
        counts([0, 100, 0], [50, 50, 0]), np.zeros(2, int), reference=np.array([0, 100, 0]), ordered=True
    )
    assert meanings == (Contrast("share", (1,)),)
    assert values[1, 0] < values[0, 0]


def test_of_two_categories_one_is_compared():
    """Two shares that add up to 1 say the same; a third that appears lowers the one that is kept."""
    _, meanings = contrasts(counts([60, 40, 0]), np.zeros(1, int), reference=np.array([60, 40, 0]), ordered=False)
    assert meanings == (Contrast("share", (0,)),)


def test_rare_categories_count_as_one():
    """The twelve commonest are compared one by one, the other three together."""
    reference = np.array([100] * 12 + [3, 2, 1])
    values, meanings = contrasts(reference[None], np.zeros(1, int), reference=reference, ordered=False)
    assert [meaning.bins for meaning in meanings] == [*((at,) for at in range(12)), (12, 13, 14)]
    assert values[0, -1] == pytest.approx(float(stabilised(np.array(6), np.array(1206))))


def test_a_column_that_is_empty_has_no_contrasts():
    """All null in the reference and in the windows is nothing to compare but nulls."""
    values, meanings = contrasts(counts([0, 0], [0, 0]), np.array([9, 9]), reference=np.array([0, 0]), ordered=True)
    assert [meaning.kind for meaning in meanings] == ["nulls"]
    assert values.shape == (2, 1)
    values, meanings = contrasts(counts([0, 0]), np.array([0]), reference=np.array([0, 0]), ordered=False)
    assert values.shape == (1, 0)
    assert meanings == ()
