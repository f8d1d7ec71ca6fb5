"""Evaluation: a recipe's metric sums over a split, every row exactly once for any number of ranks.

Sums are taken per batch, added, reduced over ranks and turned into named values. All are float64, so that the order of
batches and the number of workers make no difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from raymlops.data.order import evenly_spread
from raymlops.errors import RecipeError
from raymlops.recipe import Batch, RecipeBase, call_recipe, to_device
from raymlops.training.model.precision import autocast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from raymlops.config.train import TrainSection
    from raymlops.data.loading.loader import Loader
    from raymlops.data.prepare import SplitData
    from raymlops.training.model.ranks import Ranks


Totals = dict[str, npt.NDArray[np.float64]]


def batch_totals(recipe: RecipeBase, model: nn.Module, batch: Batch, *, rows: int) -> Totals:
    """Return the recipe's sums over one batch of ``rows``.

    Raises:
        RecipeError: ``metrics()`` raises or does not return a dict of tensors.
    """
    where = f"{type(recipe).__name__}.metrics()"
    recipe.batch_items = rows
    try:
        sums = call_recipe(where, lambda: recipe.metrics(model, batch))
    finally:
        recipe.batch_items = None
    if not isinstance(sums, Mapping) or not sums:
        raise RecipeError(f"{where} returned {type(sums).__name__}; return a dict of named sums and their count")
    return {str(name): _array(value, where=f"{where}[{name!r}]") for name, value in sums.items()}


def add(left: Totals | None, right: Totals) -> Totals:
    """Add two sums."""
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
    """Return the sums over all ranks, by one all-reduce; every rank must have the same names and shapes."""
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
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"{where} is a {type(value).__name__}; return a number") from error


def numbers(metrics: Mapping[str, Any], *, where: str) -> dict[str, float]:
    """Return metrics as floats: each may be a number or a tensor of one element.

    Raises:
        RecipeError: one is something else.
    """
    found: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            found[str(name)] = _number(value, where=where)
        except RecipeError as error:
            raise RecipeError(f"{where}: {name} is {value!r}; a metric is a number") from error
    return found


def spread_rows(split: SplitData, spec: TrainSection) -> torch.Tensor | None:
    """Return the rows of a validation where ``train.eval_max_rows`` limits them: evenly spread; else None."""
    most = spec.eval_max_rows
    if most is None or split.rows <= most:
        return None
    return evenly_spread(split.rows, most=most)


def totals(
    recipe: RecipeBase,
    model: nn.Module,
    split: SplitData,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    before_batch: Callable[[], None] = lambda: None,
    exchanges: bool = False,
    indices: torch.Tensor | None = None,
    spec: TrainSection | None = None,
    loader: Loader | None = None,
) -> Totals:
    """Return the sums over this rank's share of all rows, or of those of ``indices``, without padding.

    They are computed in the precision of ``spec``, by default in float32. A ``loader`` may read rows ahead.

    ``model`` is the plain module, never the DDP wrapper: its forward exchanges buffers, and a rank with one batch
    less would leave the others waiting. A rank without a row returns zeros of the right shapes. A model whose
    forward ``exchanges`` parameters, because they are sharded, is run equally often on every rank: one with fewer
    batches runs on a row whose sums do not count.

    Raises:
        RecipeError: ``metrics()`` breaks its contract.
    """
    rows = split.rows if indices is None else len(indices)
    indices = split.share(rank=rank, world=world) if indices is None else indices[rank::world]
    passes = math.ceil(math.ceil(rows / world) / batch_size) if exchanges else 0
    read = split.batches if loader is None else partial(loader.batches, split)
    total: Totals | None = None
    done = 0
    with _evaluating(model), nullcontext() if spec is None else autocast(spec, device):
        for batch in read(indices, batch_size=batch_size):
            before_batch()
            left = len(indices) - done * batch_size
            total = add(total, batch_totals(recipe, model, to_device(batch, device), rows=min(batch_size, left)))
            done += 1
        while total is None or done < passes:
            one = batch_totals(recipe, model, to_device(split.batch(torch.tensor([0])), device), rows=1)
            total = add(total, {name: np.zeros_like(value) for name, value in one.items()})
            done += 1
    return total


def evaluate(
    recipe: RecipeBase,
    model: nn.Module,
    split: SplitData,
    spec: TrainSection,
    *,
    ranks: Ranks,
    loader: Loader | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return the metrics over a split as ``split/name``, the same on every rank; a collective over several.

    Of the validation split, at most ``train.eval_max_rows`` rows.

    Raises:
        RecipeError: ``metrics()`` or ``finalize()`` breaks its contract.
    """
    if ranks.world_size > 1:
        ranks.copy_from_first(model.buffers())  # running statistics drift apart between ranks
    sums = totals(
        recipe,
        model,
        split,
        batch_size=spec.eval_rows,
        rank=ranks.rank,
        world=ranks.world_size,
        device=ranks.device,
        before_batch=before_batch,
        exchanges=spec.strategy == "fsdp",
        indices=spread_rows(split, spec) if split.name == "validation" else None,
        spec=spec,
        loader=loader,
    )
    if ranks.world_size > 1:
        sums = merge_over_ranks(sums, device=ranks.device)
    return named_values(recipe, sums, split=split.name)


def block_totals(
    recipe: RecipeBase,
    model: nn.Module,
    split: SplitData,
    *,
    blocks: Sequence[npt.NDArray[np.int64]],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> list[Totals]:
    """Return the sums over each of ``blocks``, numbers of rows, for resampling."""
    return [
        totals(recipe, model, split, batch_size=batch_size, device=device, indices=torch.from_numpy(rows))
        for rows in blocks
    ]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
