"""What is checked on a handful of rows before anything starts: a run or a worker.

Each check is one sentence of the recipe's contract; each failure names the method and what to do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from raymlops.errors import RecipeError
from raymlops.recipe import call_recipe, described
from raymlops.training.metrics import Totals, add, batch_totals, named_values
from raymlops.training.parallel import check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from raymlops.config.schema import ProjectSpec
    from raymlops.project import Project
    from raymlops.recipe import Batch
    from raymlops.training.data import Prepared

_ROWS = 16
_METRIC_ROWS = 512
_SEVERAL = {"sweep.objectives", "sweep.constraints"}
"""Fields that may name more than one metric."""


def preflight(project: Project, prepared: Prepared) -> None:
    """Try model, loss and metrics on a few rows, and look for every metric that the configuration names.

    Raises:
        RecipeError: ``model()`` or ``loss()`` raises, the loss is no finite scalar with a gradient, ``metrics()``
            returns means instead of sums, or a metric of ``train``, ``sweep`` or ``gate`` is never reported.
        UsageError: the model cannot be sharded, compiled or recomputed as ``train`` asks.
    """
    with torch.random.fork_rng():
        torch.manual_seed(project.spec.train.seed)
        model = _model(prepared)
        check(prepared.recipe, model, spec=project.spec.train)
        _check_loss(prepared, model)
        model.eval()
        with torch.no_grad():
            _check_sums(prepared, model)
            _check_names(project, prepared, model)


def has_unused_parameters(project: Project, prepared: Prepared) -> bool:
    """Return whether the loss leaves a trainable parameter without a gradient, which DDP has to be told."""
    with torch.random.fork_rng():
        torch.manual_seed(project.spec.train.seed)
        model = _model(prepared)
        _loss(prepared, model, _first(prepared, "train", _ROWS)).backward()  # type: ignore[no-untyped-call]
        return any(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad)


def _model(prepared: Prepared) -> nn.Module:
    where = f"{type(prepared.recipe).__name__}.model()"
    model = call_recipe(where, prepared.recipe.model)
    if not isinstance(model, torch.nn.Module):
        raise RecipeError(f"{where} returned {described(model)}; return a torch.nn.Module")
    return model


def _check_loss(prepared: Prepared, model: nn.Module) -> None:
    where = f"{type(prepared.recipe).__name__}.loss()"
    batch = _first(prepared, "train", _ROWS)
    loss = _loss(prepared, model, batch)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else described(loss)
        raise RecipeError(f"{where} returned {got}; return the mean over the batch, a tensor of one element")
    if not math.isfinite(loss.item()):
        raise RecipeError(
            f"{where} is {loss.item()} on the first rows of train with the untrained model",
            hint="Look for missing or extreme values that encode() lets through, or a logarithm of zero.",
        )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trainable and not loss.requires_grad:
        raise RecipeError(f"{where} has no gradient", hint="It must be computed from the model's output, not detached.")


def _check_sums(prepared: Prepared, model: nn.Module) -> None:
    """Sums over two parts must add up to the sums over both; a mean does not."""
    split = prepared.splits["validation"]
    rows = min(_ROWS, split.rows)
    cut = rows // 3
    if cut == 0:
        return
    whole, left, right = (_sums(prepared, model, *ends) for ends in ((0, rows), (0, cut), (cut, rows)))
    both = add(left, right)
    for name, expected in whole.items():
        got = both[name]
        if got.shape != expected.shape or not np.allclose(got, expected, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise RecipeError(
                f"{type(prepared.recipe).__name__}.metrics()[{name!r}] does not add up: {_show(expected)} over {rows} "
                f"rows, but {_show(left[name])} + {_show(right[name])} over its parts of {cut} and {rows - cut}",
                hint="Return sums over the rows (a mean times the rows); finalize() divides them by the count.",
            )


def _check_names(project: Project, prepared: Prepared, model: nn.Module) -> None:
    spec, recipe = project.spec, prepared.recipe
    split = prepared.splits["validation"]
    values = named_values(recipe, _sums(prepared, model, 0, min(_METRIC_ROWS, split.rows)), split="validation")
    names = {name.partition("/")[2] for name in values}
    for key, metric in () if recipe.train_loop is not None else _asked(spec):
        if metric != "train/loss" and metric not in values:
            raise RecipeError(
                f"{key} {'names' if key in _SEVERAL else 'is'} {metric!r}, which is never reported",
                hint=f"Reported: {', '.join(sorted([*values, 'train/loss']))}.",
            )
    judged = [spec.gate.metric] if spec.gate.metric is not None else []
    for metric in [*judged, *spec.gate.thresholds]:
        if metric.removeprefix("test/") not in names:
            raise RecipeError(
                f"gate names the metric {metric!r}, which is never reported",
                hint=f"Reported: {', '.join(f'test/{name}' for name in sorted(names))}.",
            )


def _asked(spec: ProjectSpec) -> Iterator[tuple[str, str]]:
    """Yield each field that names a metric of training, with that metric."""
    yield "train.metric", spec.train.metric
    sweep = spec.sweep
    if sweep.metric is not None:
        yield "sweep.metric", sweep.metric
    if sweep.resource not in {"epoch", "step"}:
        yield "sweep.resource", sweep.resource
    yield from (("sweep.objectives", metric) for metric in sweep.objectives)
    yield from (("sweep.constraints", metric) for metric in sweep.constraints)


def _loss(prepared: Prepared, model: nn.Module, batch: Batch) -> torch.Tensor:
    model.train()
    where = f"{type(prepared.recipe).__name__}.loss()"
    loss: torch.Tensor = call_recipe(where, lambda: prepared.recipe.loss(model, batch))
    return loss


def _first(prepared: Prepared, name: str, rows: int) -> Batch:
    split = prepared.splits[name]
    return split.batch(torch.arange(min(rows, split.rows)))


def _sums(prepared: Prepared, model: nn.Module, start: int, end: int) -> Totals:
    return batch_totals(prepared.recipe, model, prepared.splits["validation"].batch(torch.arange(start, end)))


def _show(value: np.ndarray) -> str:
    return f"{float(value):.4g}" if value.ndim == 0 else f"a sum of {float(value.sum()):.4g}"
