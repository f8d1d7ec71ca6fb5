"""What a model of flights must beat: the base rate, and a tuned logistic regression on the same rows and columns.

The regression sees exactly what the network sees: the ids of ``Flights.encode``, one-hot here, its standard scores
and its missing flags. Values are ``auc`` and ``loss`` (log loss in nats) on the test split. Needs scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.errors import RecipeError
from raymlops.recipes.flights_features import CATEGORICAL, LABEL

if TYPE_CHECKING:
    from raymlops.arrays import Columns
    from raymlops.recipe import RecipeBase, Splits

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse regularisation ``C`` that is tried; the best log loss on the validation month wins."""
MAX_ITERATIONS = 300
"""L-BFGS needs at most 81 here."""


def base_rate(splits: Splits) -> dict[str, float]:
    """Give every flight the share of late flights in training."""
    rate, share = float(np.mean(splits.train[LABEL])), float(np.mean(splits.test[LABEL]))
    return {"auc": 0.5, "loss": float(-(share * np.log(rate) + (1 - share) * np.log(1 - rate)))}


def logistic_regression(recipe: RecipeBase, splits: Splits) -> dict[str, float]:
    """Fit scikit-learn's logistic regression once for each strength; test the one that validates best, its ``c``.

    Raises:
        RecipeError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import log_loss, roc_auc_score
    except ImportError as error:
        raise RecipeError("the baseline needs scikit-learn", hint="pip install 'raymlops[recipes]'") from error
    train, validation, test = (_design(recipe, part) for part in (splits.train, splits.validation, splits.test))
    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    best = (np.inf, 0.0, np.empty(0))
    # Each strength starts where the last one ended, which saves iterations and moves no optimum.
    for strength in STRENGTHS:
        model.set_params(C=strength).fit(train, splits.train[LABEL])
        loss = log_loss(splits.validation[LABEL], model.predict_proba(validation))
        best = min(best, (loss, strength, model.predict_proba(test)[:, 1]), key=lambda tried: tried[0])
    _, strength, scores = best
    return {
        "auc": float(roc_auc_score(splits.test[LABEL], scores)),
        "loss": float(log_loss(splits.test[LABEL], scores)),
        "c": strength,
    }


def _design(recipe: RecipeBase, rows: Columns) -> Any:
    """Return the sparse design matrix, (rows, one column for each category and number)."""
    from scipy import sparse

    batch = recipe.encode(rows)
    ids = batch["ids"].numpy()
    count, fields = ids.shape
    sizes = [len(recipe.state["categories"][name]) + 1 for name in CATEGORICAL]
    first = np.cumsum([0, *sizes[:-1]])
    one_hot = sparse.csr_matrix(
        (np.ones(count * fields), (ids + first).ravel(), np.arange(0, count * fields + 1, fields)),
        shape=(count, sum(sizes)),
    )
    return sparse.hstack([one_hot, sparse.csr_matrix(batch["numbers"].numpy().astype(np.float64))], format="csr")
