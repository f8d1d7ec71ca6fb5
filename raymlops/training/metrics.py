"""Sums of a metric: taken from a batch, added, merged over ranks, and turned into named values.

Everything is float64 on the way, so that the order of batches and the number of workers do not show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from raymlops.errors import RecipeError
from raymlops.recipe import Batch, RecipeBase, call_recipe

if TYPE_CHECKING:
    from torch import nn

Totals = dict[str, npt.NDArray[np.float64]]


def batch_totals(recipe: RecipeBase, model: nn.Module, batch: Batch) -> Totals:
    """Return the recipe's sums over one batch.

    Raises:
        RecipeError: ``metrics()`` raises or does not return a dict of tensors.
    """
    where = f"{type(recipe).__name__}.metrics()"
    sums = call_recipe(where, lambda: recipe.metrics(model, batch))
    if not isinstance(sums, Mapping) or not sums:
        raise RecipeError(f"{where} returned {type(sums).__name__}; return a dict of named sums and their count")
    return {str(name): _array(value, where=f"{where}[{name!r}]") for name, value in sums.items()}


def add(left: Totals | None, right: Totals) -> Totals:
    """Return the sums of both together."""
    if left is None:
        return right
    if left.keys() != right.keys():
        raise RecipeError(f"metrics() returned {sorted(right)} for one batch and {sorted(left)} for another")
    for name, value in right.items():
        if left[name].shape != value.shape:
            raise RecipeError(
                f"metrics()[{name!r}] has shape {value.shape} for one batch and {left[name].shape} for another",
                hint="Return sums of a fixed shape: that is what makes batches add up.",
            )
    return {name: left[name] + right[name] for name in left}


def merge_over_ranks(totals: Totals, *, device: torch.device) -> Totals:
    """Return the sums over all ranks, by one exchange; every rank must hold the same names and shapes."""
    names = sorted(totals)
    flat = torch.from_numpy(np.concatenate([totals[name].ravel() for name in names])).to(device)
    torch.distributed.all_reduce(flat)
    parts = np.split(flat.cpu().numpy(), np.cumsum([totals[name].size for name in names])[:-1])
    return {name: part.reshape(totals[name].shape) for name, part in zip(names, parts, strict=True)}


def named_values(recipe: RecipeBase, totals: Totals, *, split: str) -> dict[str, float]:
    """Return the recipe's metrics as ``split/name``. A value may be NaN where the recipe says so.

    Raises:
        RecipeError: ``finalize()`` raises or does not return numbers.
    """
    where = f"{type(recipe).__name__}.finalize()"
    values = call_recipe(where, lambda: recipe.finalize(totals))
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where} returned {type(values).__name__}; return a dict of names to numbers")
    return {f"{split}/{name}": _number(value, where=f"{where}[{name!r}]") for name, value in values.items()}


def _array(value: Any, *, where: str) -> npt.NDArray[np.float64]:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"{where} is a {type(value).__name__}; return a tensor") from error
    return np.asarray(tensor.detach().cpu().to(torch.float64).numpy())


def _number(value: Any, *, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where} is a {type(value).__name__}; return a number") from error
