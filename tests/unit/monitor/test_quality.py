import math

import numpy as np
import pytest
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.metrics import roc_auc_score

from raymlops.monitor.quality import auc, auc_error, log_loss


def test_auc_by_hand():
    """Of the pairs (.8 .4), (.8 .6), (.5 .4), (.5 .6) three are in order: 3/4."""
    assert auc([0.8, 0.5, 0.4, 0.6], [1, 1, 0, 0]) == 0.75


def test_ties_count_half():
    """One positive and one negative with the same score: 1/2."""
    assert auc([0.3, 0.3], [1, 0]) == 0.5


def test_auc_needs_both_classes():
    """Without a negative there is no pair to order."""
    assert math.isnan(auc([0.3, 0.4], [1, 1]))


def test_agrees_with_scikit_learn():
    """On 500 coarse scores with many ties, both numbers equal scikit-learn's."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    scores = np.round(np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0.01, 0.99), 2)
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert log_loss(scores, labels) == pytest.approx(sk_log_loss(labels, scores), abs=1e-12)


def test_standard_error_covers_the_spread():
    """Over 400 samples the standard error is on average within 10% of the AUCs' standard deviation."""
    rng = np.random.default_rng(1)
    labels = np.r_[np.ones(60, dtype=int), np.zeros(240, dtype=int)]
    samples = [np.r_[rng.normal(1, 1, 60), rng.normal(0, 1, 240)] for _ in range(400)]
    errors = [auc_error(scores, labels) for scores in samples]
    assert np.mean(errors) == pytest.approx(np.std([auc(scores, labels) for scores in samples]), rel=0.1)
