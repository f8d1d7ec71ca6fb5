"""Try ``metrics`` and ``finalize`` on a few rows: sums add up, and what the configuration names is reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from raymlops.errors import RecipeError
from raymlops.loss_value import LossValue, loss_value
from raymlops.recipe import Progress, RecipeBase, to_device
from raymlops.training.loop.evaluation import Totals, add, named_values, totals
from raymlops.training.model.precision import DTYPES, autocast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from raymlops.config.schema import ProjectSpec
    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project

    Warn = Callable[[str], None]

ROWS = 16
_MOST_ROWS = 512
"""Rows that go through ``metrics`` before an error of ``finalize`` counts: it may need more rows than a few."""
_LATE = 10_000
"""Step and epoch of a training near its end."""
_SEVERAL = {"sweep.objectives", "sweep.constraints"}
"""Fields that may name more than one metric."""


def check_metrics(project: Project, prepared: Prepared, model: nn.Module, *, device: str) -> None:
    """Check what ``metrics`` and ``finalize`` return for the first validation rows."""
    section, recipe, split = project.spec.train, prepared.recipe, prepared.splits["validation"]
    # Sums of parts take three rows, and an evaluation takes no gradient.
    rows = min(ROWS, section.eval_rows, max(3, section.micro_batch_rows), split.rows)

    def sums(start: int, end: int, spec: TrainSection | None = None) -> Totals:
        indices = torch.arange(start, end)
        return totals(recipe, model, split, batch_size=rows, device=device, indices=indices, spec=spec)

    # First: sums that do not add up may be why finalize() raises.
    if rows >= 3 and type(recipe).metrics is not RecipeBase.metrics:
        _check_sums(sums, rows=rows, name=type(recipe).__name__, exact=section.precision == "fp32")
    values = _first_values(lambda start, end: sums(start, end, section), recipe, rows=rows, most=split.rows)
    for key, metric in () if recipe.train_loop is not None else _asked(project.spec):
        if metric != "train/loss" and metric not in values:
            raise RecipeError(
                f"{key} {'names' if key in _SEVERAL else 'is'} {metric!r}, which is never reported",
                hint=f"Reported: {', '.join(sorted([*values, 'train/loss']))}.",
            )
    gate, tested = project.spec.gate, {f"test/{name.partition('/')[2]}" for name in values}
    for metric in [*([gate.metric] if gate.metric is not None else []), *gate.thresholds]:
        if f"test/{metric.removeprefix('test/')}" not in tested:
            raise RecipeError(
                f"gate names the metric {metric!r}, which is never reported",
                hint=f"Reported: {', '.join(sorted(tested))}.",
            )


def _first_values(sums: Callable[[int, int], Totals], recipe: RecipeBase, *, rows: int, most: int) -> dict[str, float]:
    """Return the metrics of a few rows, or of more where ``finalize`` raises: it may need rows of each class."""
    most, end = min(_MOST_ROWS, most), 0
    found: Totals | None = None
    while True:
        start, end = end, min(end + rows, most)
        found = add(found, sums(start, end))
        try:
            return named_values(recipe, found, split="validation")
        except RecipeError:
            if end == most:
                raise


def _check_sums(sums: Callable[[int, int], Totals], *, rows: int, name: str, exact: bool) -> None:
    """Check that sums over two parts add up to the sums over both, which a mean does not.

    What differs for the same rows is drawn at random, such as negatives, and cannot be checked. In float32, so that
    rounding is not mistaken for a mean. A model that runs only in low precision is not checked.
    """
    cut = rows // 3
    try:
        whole, left, right = sums(0, rows), sums(0, cut), sums(cut, rows)
    except RecipeError:
        if exact:
            raise
        return
    both = add(left, right)
    again: Totals | None = None
    for key, expected in whole.items():
        got = both[key]
        if got.shape == expected.shape and np.allclose(got, expected, rtol=1e-3, atol=1e-4, equal_nan=True):
            continue
        again = sums(0, rows) if again is None else again
        if np.array_equal(again[key], expected, equal_nan=True):
            raise RecipeError(
                f"{name}.metrics()[{key!r}] does not add up: {_show(expected)} over {rows} rows, but "
                f"{_show(left[key])} + {_show(right[key])} over its parts of {cut} and {rows - cut}",
                hint="Return sums over the rows (a mean times the rows); finalize() divides them by the count.",
            )


def check_sums_precision(
    section: TrainSection, prepared: Prepared, model: nn.Module, *, device: str, notice: Warn
) -> None:
    """Say so where ``metrics`` sums in the low precision of the forward pass, which rounds, and in fp16 overflows."""
    recipe, split = prepared.recipe, prepared.splits["validation"]
    if section.precision == "fp32" or type(recipe).metrics is RecipeBase.metrics:
        return
    recipe.batch_items = min(ROWS, section.eval_rows, split.rows)
    batch = to_device(split.batch(torch.arange(recipe.batch_items)), device)
    try:
        with torch.no_grad(), autocast(section, device):
            sums = recipe.metrics(model, batch)
    finally:
        recipe.batch_items = None
    low = [name for name, value in sums.items() if getattr(value, "dtype", None) in DTYPES.values()]
    if low:
        notice(
            f"{type(recipe).__name__}.metrics() sums {', '.join(low)} in {section.precision}, which keeps two or three "
            "digits, so that they depend on train.eval_batch_size: sum in float32, such as by .float().sum()"
        )


def check_mean(section: TrainSection, prepared: Prepared, model: nn.Module, *, device: str, notice: Warn) -> None:
    """Say so where a loss is not what it counts as: a mean over rows where they are divided, or a sum with a weight.

    And where, as a metric, it depends on how far the training is.
    """
    recipe, split = prepared.recipe, prepared.splits["validation"]
    rows = min(ROWS, section.micro_batch_rows, section.eval_rows, split.rows)
    cut = rows // 3
    divided = section.accumulate > 1 or section.workers[1] > 1 or type(recipe).metrics is RecipeBase.metrics
    if not cut:
        return

    def value(start: int, end: int) -> LossValue:
        batch = to_device(split.batch(torch.arange(start, end)), device)
        with torch.no_grad(), autocast(section, device):
            return loss_value(recipe.loss(model, batch), where="loss()")

    try:
        whole, left, right = value(0, rows), value(0, cut), value(cut, rows)
        recipe.progress = Progress(_LATE, _LATE, _LATE)
        late = value(0, rows)
    except Exception:
        return
    finally:
        recipe.progress = Progress()
    annealed = type(recipe).metrics is RecipeBase.metrics and not torch.equal(whole.value, late.value)
    weighted = whole.weight is not None
    both = left.value + right.value if weighted else (left.value * cut + right.value * (rows - cut)) / rows
    close = torch.allclose(whole.value, both, rtol=1e-3 if section.precision == "fp32" else 1e-2, atol=1e-5)
    if (close and not annealed) or not torch.equal(whole.value, value(0, rows).value):
        return
    if annealed:
        notice(
            f"{type(recipe).__name__}.loss() depends on self.progress in evaluations too: {whole.value.item():.4g} at "
            f"the first step, {late.value.item():.4g} later. So the best epoch, and the gate, which evaluates as at "
            "the first step, compare unlike values: use self.progress where model.training alone"
        )
    if close:
        return
    if weighted:
        notice(
            f"{type(recipe).__name__}.loss() returns (sum, weight), but its sum does not add up: "
            f"{whole.value.item():.4g} over {rows} rows, {left.value.item():.4g} + {right.value.item():.4g} over "
            f"its parts of {cut} and {rows - cut}. Return a mean alone; for a loss between rows it is expected"
        )
    elif divided:
        notice(
            f"{type(recipe).__name__}.loss() is no mean over the rows of a batch: {whole.value.item():.4g} over {rows} "
            f"rows, {both.item():.4g} as the mean of its parts of {cut} and {rows - cut}. So train.accumulate and the "
            "number of workers change the result, and train.eval_batch_size validation/loss. Return (sum, weight) for "
            "weighted rows or tokens; for a loss between the rows of a batch, such as a contrastive one, it is expected"
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


def _show(value: np.ndarray) -> str:
    return f"{float(value):.4g}" if value.ndim == 0 else f"a sum of {float(value.sum()):.4g}"
