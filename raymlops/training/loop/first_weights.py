"""The first weights of a new run: what ``model()`` drew, or what the recipe loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from raymlops.recipe import RecipeBase, call_recipe

if TYPE_CHECKING:
    from torch import nn

    from raymlops.training.loop.rank_sync import Ranks


def initialized(recipe: RecipeBase, model: nn.Module, *, ranks: Ranks) -> None:
    """Load first weights into a new model by the recipe's ``initialize``: on rank 0, whose weights all others copy.

    Raises:
        RecipeError: ``initialize()`` raises.
    """
    if type(recipe).initialize is RecipeBase.initialize:
        return
    if ranks.rank == 0:
        with torch.no_grad():
            call_recipe(f"{type(recipe).__name__}.initialize()", lambda: recipe.initialize(model))
    ranks.copy_from_first([*model.parameters(), *model.buffers()])
