"""Preflight checks: try the recipe on a few rows before a run, a worker or a trial starts.

Each check is one sentence of the recipe's contract; each failure names the method and what to do. Batches are no larger
than those of the run, on its device and in its precision, so that they fit where the run fits. Where workers train on
GPUs that this process lacks, the first of them tries the model before its first step; a sweep tries on the CPU what
does not need the GPU, instead of in each of its trials.
"""

from __future__ import annotations

import gc
import logging
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from raymlops.bundle.code import collect
from raymlops.errors import RaymlopsError, RecipeError
from raymlops.recipe import call_recipe, described, model_of, to_device
from raymlops.training.example import check_answer, check_encode
from raymlops.training.inprocess import local_device
from raymlops.training.loop.batch_norm import normalizes_batches
from raymlops.training.loop.evaluation import Totals, add, named_values, totals
from raymlops.training.loop.parallel import check
from raymlops.training.loop.precision import autocast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from raymlops.config.schema import ProjectSpec
    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.recipe import RecipeBase

    Warn = Callable[[str], None]

_log = logging.getLogger(__name__)

_ROWS = 16
_MOST_ROWS = 512
"""Rows that go through ``metrics`` before an error of ``finalize`` counts: it may need more rows than a few."""
_SEVERAL = {"sweep.objectives", "sweep.constraints"}
"""Fields that may name more than one metric."""


def preflight(
    project: Project,
    prepared: Prepared,
    *,
    workers: int | None = None,
    has_gpu: bool | None = None,
    warn: Warn | None = None,
) -> bool | None:
    """Try the recipe on a few rows: model, loss, metrics, the answer to a request, and whether its code can be bundled.

    ``workers`` replaces ``train.num_workers``; ``has_gpu`` says whether this process has a GPU. ``warn``, for a resumed
    run, gets a warning instead of an error about what only a bundle or a request needs.

    Returns whether the loss leaves a trainable parameter without a gradient, which DDP needs to know: False for a
    training in this process, None where it takes the workers' GPU to find out.

    Raises:
        RecipeError: a method raises or breaks its contract, a metric of ``train``, ``sweep`` or ``gate`` is never
            reported, there is no example of a request, or the code cannot be bundled.
        UsageError: the model cannot be sharded, compiled or recomputed as ``train`` configures.
    """
    with _only_warned(warn):
        if notice := collect(project.recipe_class).notice():
            _log.warning(notice)
    workers = project.spec.train.workers[1] if workers is None else workers
    device = _device(project.spec.train, workers=workers, has_gpu=has_gpu)
    if device == "worker's":
        with _only_warned(warn):
            check_encode(prepared)
        return None
    try:
        return try_model(project, prepared, device=device, distributed=workers > 0, warn=warn)
    except Exception as error:
        # This GPU may be in use by others while the workers' are free.
        if workers and device == "cuda" and _is_out_of_memory(error):
            return None
        raise


def preflight_sweep(
    project: Project, prepared: Prepared, *, has_gpu: bool | None = None, warn: Warn | None = None
) -> None:
    """Try the recipe as ``preflight`` does, before any trial.

    Where only the trials have a GPU, the model is tried on the CPU. An exception of the recipe's code may be caused by
    that and is left to the trials, without a warning. Wrong return values are wrong on a GPU too.

    Raises:
        RecipeError, UsageError: as ``preflight``.
    """
    workers = project.spec.sweep.workers_per_trial
    if preflight(project, prepared, workers=workers, has_gpu=has_gpu, warn=warn) is not None:
        return
    exact = project.spec.train.model_copy(update={"precision": "fp32"})  # not every low precision is the CPU's
    warn = None if warn is None else lambda _text: None
    try:
        try_model(project.with_train(exact), prepared, device="cpu", distributed=False, warn=warn)
    except Exception as error:
        if _is_ours(error):
            raise


def has_unused_parameters(project: Project, prepared: Prepared, *, has_gpu: bool | None = None) -> bool | None:
    """Return whether the loss leaves a trainable parameter without a gradient, which DDP needs to know.

    None where this process lacks the GPU that the model may need: then ``try_on_first_rank`` finds out.
    """
    section = project.spec.train
    device = _device(section, workers=section.workers[1], has_gpu=has_gpu)
    if device == "worker's":
        return None
    with _aside(section, device):
        model = model_of(prepared.recipe).to(device)
        return _unused(model, _check_loss(section, prepared, model, device=device))


def try_on_first_rank(
    project: Project,
    prepared: Prepared,
    *,
    rank: int,
    world_size: int,
    group: Any,
    device: torch.device | str,
    warn: Warn | None = None,
) -> bool:
    """Try the model on rank 0, as ``preflight`` would have, and return on every rank whether parameters are unused.

    A collective over ``group``. A sharded model may be too large for one GPU: running out of memory is no error here.

    Raises:
        RaymlopsError: as ``preflight``, on every rank.
    """
    found: list[Any] = [False]
    if rank == 0:
        try:
            found = [try_model(project, prepared, device=str(device), distributed=True, warn=warn)]
        except RaymlopsError as error:
            found = [False if _is_out_of_memory(error) else error]
        except torch.OutOfMemoryError:
            pass
    if world_size > 1:
        torch.distributed.broadcast_object_list(found, src=0, group=group)
    if isinstance(found[0], RaymlopsError):
        raise found[0]
    return bool(found[0])


def try_model(
    project: Project, prepared: Prepared, *, device: str, distributed: bool, warn: Warn | None = None
) -> bool:
    """Build the model once and try everything that needs it on ``device``; return whether parameters are unused.

    Unused parameters are only checked where the training is ``distributed``.

    Raises:
        RecipeError, UsageError: as ``preflight``.
    """
    section = project.spec.train
    with _aside(section, device):
        model = model_of(prepared.recipe)
        check(prepared.recipe, model, spec=section)
        model = model.to(device)
        loss = _check_loss(section, prepared, model, device=device)
        unused = distributed and _unused(model, loss)
        del loss
        model.eval()
        _check_metrics(project, prepared, model, device=device)
        with _only_warned(warn):
            check_answer(prepared, model, device=device)
        return unused


def _device(section: TrainSection, *, workers: int, has_gpu: bool | None) -> Literal["cpu", "cuda", "worker's"]:
    """Return the device on which the model can be tried: one of this process, or only a worker's."""
    here = local_device(section, has_gpu=has_gpu)
    return "worker's" if section.gpus_per_worker and workers and here == "cpu" else here


@contextmanager
def _only_warned(warn: Warn | None) -> Iterator[None]:
    """Turn an error that says that a model could not be served into a warning, where ``warn`` is given."""
    try:
        yield
    except RaymlopsError as error:
        if warn is None:
            raise
        hint = f" {error.hint}" if error.hint else ""
        warn(f"the training continues, but its model could not be registered: {error.message}.{hint}")


def _is_ours(error: BaseException | None) -> bool:
    """Return whether the error is from a check of raymlops, not from the recipe's code."""
    return error is None or (isinstance(error, RaymlopsError) and _is_ours(error.__cause__))


@contextmanager
def _aside(section: TrainSection, device: str) -> Iterator[None]:
    """Draw from seeded generators that are restored afterwards, and free the GPU's memory."""
    cuda = torch.device(device).type == "cuda"
    # Without a list it would make a context on every GPU of the machine.
    index = torch.device(device).index
    drawn_from = [torch.cuda.current_device() if index is None else index] if cuda else []
    try:
        with torch.random.fork_rng(devices=drawn_from):
            torch.manual_seed(section.seed)
            yield
    finally:
        if cuda:
            gc.collect()
            torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException | None) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (error is not None and _is_out_of_memory(error.__cause__))


def _check_loss(section: TrainSection, prepared: Prepared, model: nn.Module, *, device: str) -> torch.Tensor:
    """Return the loss of the first training rows."""
    where = f"{type(prepared.recipe).__name__}.loss()"
    split = prepared.splits["train"]
    rows = min(_ROWS, split.rows, section.micro_batch_rows)
    batch = to_device(split.batch(torch.arange(rows)), device)
    model.train()
    try:
        with autocast(section, device):
            loss = call_recipe(where, lambda: prepared.recipe.loss(model, batch))
    except RecipeError as error:
        if rows == 1 and normalizes_batches(model):
            raise _too_few_rows(section, error, rows=split.rows) from error
        raise
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
        raise RecipeError(f"{where} has no gradient", hint="Compute it from the model's output, not detached.")
    return loss


def _too_few_rows(section: TrainSection, error: RecipeError, *, rows: int) -> RecipeError:
    if rows == 1:
        why, hint = "the training split has one row", "Train on two rows at least."
    else:
        why = (
            f"train.batch_size {section.batch_size} in {section.accumulate} micro-batches on each of "
            f"{max(1, section.workers[0])} workers leaves one row to each"
        )
        hint = "Raise train.batch_size, or lower train.accumulate or train.num_workers."
    return RecipeError(
        f"the model normalises over the rows of a batch, which takes two at least, but {why}: {error.message}",
        hint=f"{hint} Or use a normalisation of single rows, such as LayerNorm or GroupNorm.",
    )


def _unused(model: nn.Module, loss: torch.Tensor) -> bool:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        return False
    loss.backward()  # type: ignore[no-untyped-call]
    unused = any(parameter.grad is None for parameter in trainable)
    model.zero_grad(set_to_none=True)
    return unused


def _check_metrics(project: Project, prepared: Prepared, model: nn.Module, *, device: str) -> None:
    """Check what ``metrics`` and ``finalize`` return for the first validation rows."""
    section, recipe, split = project.spec.train, prepared.recipe, prepared.splits["validation"]
    # Sums of parts take three rows, and an evaluation takes no gradient.
    rows = min(_ROWS, section.eval_batch_size, max(3, section.micro_batch_rows), split.rows)

    def sums(start: int, end: int, spec: TrainSection | None = None) -> Totals:
        indices = torch.arange(start, end)
        return totals(recipe, model, split, batch_size=rows, device=device, indices=indices, spec=spec)

    # First: sums that do not add up may be why finalize() raises.
    if rows >= 3:
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

    In float32, so that rounding is not mistaken for a mean. A model that runs only in low precision is not checked.
    """
    cut = rows // 3
    try:
        whole, left, right = sums(0, rows), sums(0, cut), sums(cut, rows)
    except RecipeError:
        if exact:
            raise
        return
    both = add(left, right)
    for key, expected in whole.items():
        got = both[key]
        if got.shape != expected.shape or not np.allclose(got, expected, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise RecipeError(
                f"{name}.metrics()[{key!r}] does not add up: {_show(expected)} over {rows} rows, but "
                f"{_show(left[key])} + {_show(right[key])} over its parts of {cut} and {rows - cut}",
                hint="Return sums over the rows (a mean times the rows); finalize() divides them by the count.",
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
