"""Contrasts of binned counts, by hand."""

import math

import numpy as np
import pytest

from raymlops.monitor.contrasts import Contrast, contrasts, polynomials, share_of, stabilised


def counts(*rows):
    return np.array(rows, dtype=np.int64)


def test_two_equal_bins_differ_in_location_alone():
    """Mid-ranks .25 and .75, so the only standardised score is -1 and 1."""
    assert polynomials(np.array([0.5, 0.5])) == pytest.approx(np.array([[-1, 1]]))


def test_three_bins_have_a_location_and_a_scale():
    """Shares 1/4, 1/2, 1/4: location -r, 0, r with r = sqrt 2 has mean square 2/4 + 2/4, scale 1, -1, 1 has mean 0."""
    root = math.sqrt(2)
    assert polynomials(np.array([0.25, 0.5, 0.25])) == pytest.approx(np.array([[-root, 0, root], [1, -1, 1]]))


def test_polynomials_are_orthonormal_under_the_shares():
    """Also with ties of very unlike size and with empty bins."""
    shares = np.array([0, 700, 1, 20, 0, 5, 40, 300, 3, 0]) / 1069
    scores = polynomials(shares)
    assert (scores * shares) @ scores.T == pytest.approx(np.eye(3), abs=1e-9)
    assert scores @ shares == pytest.approx(np.zeros(3), abs=1e-9)


def test_a_bin_that_is_empty_scores_by_its_rank():
    """Below everything is less than what is lowest, above everything more than what is highest."""
    location = polynomials(np.array([0, 0.25, 0.25, 0.25, 0.25, 0]))[0]
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
    """Shares (1/4, 3/4) and (3/4, 1/4) are (1/2, 1/2) together, scores -1 and 1; 4 nulls of 8 are pi / 2."""
    values, meanings = contrasts(counts([3, 9], [3, 1]), np.array([0, 4]), ordered=True)
    assert [meaning.kind for meaning in meanings] == ["location", "nulls"]
    assert values[:, 0] == pytest.approx([0.5, -0.5])
    assert values[1, 1] == pytest.approx(math.pi / 2)


def test_all_windows_have_the_same_part_in_the_contrasts():
    """Whatever their order is, and however many rows one has."""
    windows = np.random.default_rng(1).multinomial(50, np.full(6, 1 / 6), size=5)
    windows[0] *= 1000
    values, _ = contrasts(windows, np.zeros(5, int), ordered=True)
    assert contrasts(windows[::-1], np.zeros(5, int), ordered=True)[0] == pytest.approx(values[::-1])
    assert values.mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-9)


def test_values_that_hardly_any_window_has_are_one_share_between_others_and_one_outside():
    """Of twenty windows two have some at bin 2 and one at the last; the first bin was never filled."""
    windows = np.tile([0, 50, 0, 50, 0], (20, 1))
    windows[:2, 2], windows[5, 4] = 3, 1
    values, meanings = contrasts(windows, np.zeros(20, int), ordered=True)
    assert meanings[3:] == (Contrast("share", (2,)), Contrast("ends", (4,)))
    assert values[0, 3] > values[2, 3] == pytest.approx(values[3, 3])
    assert values[5, 4] > values[4, 4]


def test_a_column_without_nulls_has_no_contrast_for_them():
    """There is nothing to compare, and one column less to look at."""
    _, meanings = contrasts(counts([5, 5]), np.array([0]), ordered=True)
    assert meanings == (Contrast("location"),)


def test_a_window_all_null_has_moved_in_its_nulls_alone():
    """Of its values nothing is known: they are taken to be as ever."""
    values, meanings = contrasts(counts([5, 5], [0, 0]), np.array([0, 10]), ordered=True)
    assert values[1, 0] == 0
    assert meanings[-1].kind == "nulls"
    values, _ = contrasts(counts([5000, 3000, 2000], [0, 0, 0]), np.array([0, 10]), ordered=False)
    assert values[1, :3] == pytest.approx(values[0, :3], abs=1e-3)


def test_a_value_that_never_changes_has_no_contrasts():
    """Nor has a single category. Where a second value appears, there is one."""
    for ordered in (True, False):
        assert contrasts(counts([0, 100, 0], [0, 90, 0]), np.zeros(2, int), ordered=ordered)[1] == ()
        assert len(contrasts(counts([0, 100, 0], [50, 50, 0]), np.zeros(2, int), ordered=ordered)[1]) == 1


def test_of_two_categories_one_is_compared():
    """Two shares that add up to 1 say the same."""
    _, meanings = contrasts(counts([60, 40, 0]), np.zeros(1, int), ordered=False)
    assert meanings == (Contrast("share", (0,)),)


def test_rare_categories_count_as_one():
    """The twelve commonest are compared one by one, the other three together."""
    windows = np.array([[100] * 12 + [3, 2, 0, 1]])
    values, meanings = contrasts(windows, np.zeros(1, int), ordered=False)
    assert [meaning.bins for meaning in meanings] == [*((at,) for at in range(12)), (12, 13, 15)]
    assert values[0, -1] == pytest.approx(float(stabilised(np.array(6), np.array(1206))))


def test_a_column_that_is_empty_has_no_contrasts():
    """All null in the reference and in the windows is nothing to compare but nulls."""
    values, meanings = contrasts(counts([0, 0], [0, 0]), np.array([9, 9]), ordered=True)
    assert [meaning.kind for meaning in meanings] == ["nulls"]
    assert values.shape == (2, 1)
    values, meanings = contrasts(counts([0, 0]), np.array([0]), ordered=False)
    assert values.shape == (1, 0)
    assert meanings == ()


def test_rows_choose_the_commonest_categories():
    """Of 13 categories the last has 1% of 10,000 rows, and half of the 20 rows of a window: it is the rarest."""
    windows = counts([*[825] * 12, 100], [*[1] * 10, 0, 0, 10])
    _, meanings = contrasts(windows, counts(0, 0)[0], ordered=False)
    assert [meaning.bins for meaning in meanings][-1] == (12,)
