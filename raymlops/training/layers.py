"""Which parts of a model are gathered, and computed again, as units.

Owns the size rule and the check of what a recipe names. Knows modules and parameters alone, nothing of ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from raymlops.errors import RecipeError, UsageError
from raymlops.recipe import RecipeBase, call_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

_REPEATED = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_NEVER_RUN = (nn.ModuleList, nn.ModuleDict)


def layers_to_shard(recipe: RecipeBase, model: nn.Module, *, min_params: int) -> list[nn.Module]:
    """Return the submodules that are gathered, and recomputed, one at a time; what remains is the root's.

    They are the recipe's ``shard_layers(model)`` or, where that is None, found by size: the outermost repeated blocks,
    which are the children of ``ModuleList``, ``ModuleDict`` and ``Sequential``, of at least ``min_params`` parameters;
    and other submodules of that size that hold no such block. Left to the root, which stays gathered through a
    step, are embeddings, whose table is often used as output layer as well, and whatever shares a parameter with
    something outside it.

    Raises:
        UsageError: the model has no parameters.
        RecipeError: ``shard_layers()`` raises, or returns anything but separate submodules of the model.
    """
    if next(model.parameters(), None) is None:
        raise UsageError(
            f"there is nothing to shard: {type(model).__name__} has no parameters",
            hint="Use train.strategy: ddp without train.activation_checkpointing.",
        )
    where = f"{type(recipe).__name__}.shard_layers()"
    given = call_recipe(where, lambda: recipe.shard_layers(model))
    if given is not None:
        return _checked(given, model, where=where)
    return [layer for layer in _by_size(model, min_params) if not _shared_outside(layer, model)]


def _by_size(module: nn.Module, min_params: int) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.Embedding | nn.EmbeddingBag) or _count(child) < min_params:
            continue
        if isinstance(module, _REPEATED) and not isinstance(child, _NEVER_RUN):
            yield child  # a block; what it consists of is its own business
            continue
        inside = list(_by_size(child, min_params))
        if inside or isinstance(child, _NEVER_RUN):
            yield from inside
        else:
            yield child


def _checked(given: Any, model: nn.Module, *, where: str) -> list[nn.Module]:
    names = {module: name for name, module in model.named_modules() if name}
    if not isinstance(given, list | tuple) or not all(layer in names for layer in given):
        raise RecipeError(f"{where} must return a list of submodules of the model that it gets, or None")
    layers = list(dict.fromkeys(given))
    for layer in layers:
        if isinstance(layer, _NEVER_RUN):
            raise RecipeError(
                f"{where}: {names[layer]} is a {type(layer).__name__}, which is never run; name its parts"
            )
        around = [other for other in layers if other is not layer and layer in set(other.modules())]
        if around:
            raise RecipeError(f"{where}: {names[layer]} lies inside {names[around[0]]}; name one of them")
        if _shared_outside(layer, model):
            raise RecipeError(
                f"{where}: {names[layer]} shares a parameter with a module outside it, which sharding would untie",
                hint="Leave it out: what is not named is sharded with the model as a whole.",
            )
    return layers


def _shared_outside(layer: nn.Module, model: nn.Module) -> bool:
    inside, own = set(layer.modules()), set(layer.parameters())
    return any(
        parameter in own
        for module in model.modules()
        if module not in inside
        for parameter in module.parameters(recurse=False)
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
