"""The first weights of a new run: what ``model()`` drew, what the recipe loads, or those of another run or version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from raymlops.bundle import weights
from raymlops.bundle.verify import WEIGHTS, fetch
from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase, call_recipe
from raymlops.training.checkpoints.format import trained

if TYPE_CHECKING:
    from torch import nn

_SHOWN = 5


def has_first_weights(recipe: RecipeBase, source: str | None) -> bool:
    """Return whether a new model gets other weights than those that ``model()`` drew."""
    return source is not None or type(recipe).initialize is not RecipeBase.initialize


def load_first_weights(recipe: RecipeBase, model: nn.Module, source: str | None) -> None:
    """Load first weights into a new model on the CPU: those of ``source``, or else by the recipe's ``initialize``.

    ``source`` is ``train.init_from`` as a place: the URI of a checkpoint, or ``URI#DIGEST`` of a bundle.

    Raises:
        RecipeError: they do not fit the model, or ``initialize()`` raises or changes more than values.
        NotFoundError, StorageError, BundleError: they cannot be read, or are damaged.
    """
    with torch.no_grad():
        if source is None:
            _initialize(recipe, model)
            return
        uri, _, digest = source.partition("#")
        try:
            if digest:
                weights.read_into(model, fetch(uri, digest) / WEIGHTS)
                return
            with trained(uri) as checkpoint:
                checkpoint.load_into(model)
        except RuntimeError as error:
            raise RecipeError(
                f"train.init_from {source!r} does not fit the model of {type(recipe).__name__}: {error}",
                hint="model() must build the same tensors. To take some over, leave train.init_from out and load "
                "them in initialize(model).",
            ) from error


def _initialize(recipe: RecipeBase, model: nn.Module) -> None:
    where, before = f"{type(recipe).__name__}.initialize()", tensors_of(model)
    call_recipe(where, lambda: recipe.initialize(model))
    if changed := sorted({name for name, _ in before ^ tensors_of(model)}):
        raise RecipeError(
            f"{where} changed {', '.join(changed[:_SHOWN])} in more than values",
            hint="It is not called where a run resumes, nor on other ranks: add, resize and freeze layers in model().",
        )


def tensors_of(model: nn.Module) -> set[tuple[str, Any]]:
    """Return the names of all tensors, each with what other ranks and a resumed run have alike."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {(name, (tensor.shape, tensor.dtype, tensor.requires_grad)) for name, tensor in named}
