"""The bytelm recipe: its contract."""

from __future__ import annotations

from raymlops.recipes.bytelm import ByteLM
from raymlops.testing import RecipeContract


class TestByteLMContract(RecipeContract):
    recipe = ByteLM
    config = {"layers": 1, "heads": 2, "width": 16, "block": 24, "corpus_bytes": 10_000}  # noqa: RUF012
