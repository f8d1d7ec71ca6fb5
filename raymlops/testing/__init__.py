"""What users test their own work with."""

from __future__ import annotations

from raymlops.testing.contract import RecipeContract

__all__ = ["RecipeContract"]
