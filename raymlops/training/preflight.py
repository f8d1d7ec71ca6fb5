"""Preflight checks: try the recipe on a few rows before a run, a worker or a trial starts.

Each check is one sentence of the recipe's contract; each failure names the method and what to do. Batches are no larger
than those of the run, on its device and in its precision, so that they fit where the run fits. Where workers train on
GPUs that this process lacks, the first of them tries the model before its first step; a sweep tries on the CPU what
does not need the GPU, instead of in each of its trials.
"""

from __future__ import annotations

import gc
import logging
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.parameter import is_lazy

from raymlops.bundle.code import collect
from raymlops.bundle.slices import slices_of
from raymlops.data.random_streams import Stream
from raymlops.data.sampler import epoch_rows
from raymlops.errors import RaymlopsError, RecipeError
from raymlops.recipe import defines_loss, model_of, times_of
from raymlops.training.callbacks import callbacks_of
from raymlops.training.example import check_answer, check_encode, rounded_integers
from raymlops.training.first_loss import check_loss, first_rows, loss_of
from raymlops.training.inprocess import local_device
from raymlops.training.loop.optimizer import Schedule, build_optimizer, total_steps
from raymlops.training.metric_checks import check_mean, check_metrics, check_sums_precision
from raymlops.training.model.first_weights import load_first_weights
from raymlops.training.model.parallel import check
from raymlops.training.own_loop import unused_settings
from raymlops.training.unused_parameters import configured, leaves_unused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from raymlops.bundle.code import Code
    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.training.metric_checks import Warn


_log = logging.getLogger(__name__)


def preflight(
    project: Project,
    prepared: Prepared,
    *,
    code: Code | None = None,
    workers: int | None = None,
    has_gpu: bool | None = None,
    warn: Warn | None = None,
    notice: Warn = _log.warning,
) -> bool | None:
    """Try the recipe on a few rows: model, loss, metrics, the answer to a request, and whether its code can be bundled.

    ``code`` is the recipe's, if it is known. ``workers`` replaces ``train.num_workers``; ``has_gpu`` says whether this
    process has a GPU. ``warn``, for a resumed run, gets a warning instead of an error about what only a bundle or a
    request needs; ``notice`` gets what is right but may surprise.

    Returns whether the loss leaves a trainable parameter without a gradient, which DDP needs to know: False for a
    training in this process, None where it takes the workers' GPU to find out.

    Raises:
        RecipeError: a method raises or breaks its contract, a metric of ``train``, ``sweep`` or ``gate`` is never
            reported, there is no example of a request, or the code cannot be bundled.
        UsageError: the model cannot be sharded, compiled or recomputed as ``train`` configures, or ``monitor.slices``
            names what is no input.
    """
    with _only_warned(warn):
        code = code or collect(project.recipe_class)
        if left_out := code.notice():
            notice(left_out)
        if project.recipe_class.train_loop is not None and (unused := unused_settings(project.spec, code.files)):
            notice(unused)
        slices_of(project.spec.monitor.slices, prepared.signature)
    if rounded := rounded_integers(prepared):
        notice(rounded)
    callbacks_of(prepared.recipe)
    workers = project.spec.train.workers[1] if workers is None else workers
    device = _device(project.spec.train, workers=workers, has_gpu=has_gpu)
    if device == "worker's":
        with _only_warned(warn):
            check_encode(prepared)
        return None
    try:
        return try_model(project, prepared, device=device, distributed=workers > 0, warn=warn, notice=notice)
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
    if (known := configured(section)) is not None:
        return known
    device = _device(section, workers=section.workers[1], has_gpu=has_gpu)
    if device == "worker's":
        return None
    with _aside(section, device):
        model = model_of(prepared.recipe).to(device)
        if not defines_loss(type(prepared.recipe)):
            return False
        return _has_unused(section, prepared, model, device=device)


def try_on_first_rank(
    project: Project,
    prepared: Prepared,
    *,
    rank: int,
    world_size: int,
    group: Any,
    device: torch.device | str,
    warn: Warn | None = None,
    notice: Warn = _log.warning,
) -> bool:
    """Try the model on rank 0, as ``preflight`` would have, and return on every rank whether parameters are unused.

    A collective over ``group``. A sharded model may be too large for one GPU: running out of memory is no error here.

    Raises:
        RaymlopsError: as ``preflight``, on every rank.
    """
    found: list[Any] = [False]
    if rank == 0:
        try:
            found = [try_model(project, prepared, device=str(device), distributed=True, warn=warn, notice=notice)]
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
    project: Project,
    prepared: Prepared,
    *,
    device: str,
    distributed: bool,
    warn: Warn | None = None,
    notice: Warn = _log.warning,
) -> bool:
    """Build the model once and try everything that needs it on ``device``; return whether parameters are unused.

    Unused parameters are only checked where the training is ``distributed``.

    Raises:
        RecipeError, UsageError: as ``preflight``.
    """
    section = project.spec.train
    with _aside(section, device):
        model = model_of(prepared.recipe)
        _refuse_unknown_sizes(model, name=type(prepared.recipe).__name__)
        check(prepared.recipe, model, spec=section)
        if section.init_from is not None and warn is None:  # a resumed run has weights
            load_first_weights(prepared.recipe, model, section.init_from)
        model = model.to(device)
        if prepared.recipe.train_loop is None:
            _check_steps(section, prepared, model, notice=notice)
        unused, has_loss = False, defines_loss(type(prepared.recipe))
        if has_loss:
            unused = _has_unused(section, prepared, model, device=device, distributed=distributed)
        model.eval()
        check_metrics(project, prepared, model, device=device)
        if has_loss:
            check_mean(section, prepared, model, device=device, notice=notice)
        check_sums_precision(section, prepared, model, device=device, notice=notice)
        with _only_warned(warn):
            check_answer(prepared, model, device=device)
        for columns in islice(prepared.splits["train"].chunks(), 1):
            times_of(prepared.recipe, columns)  # a registration needs them, after the training
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
    """Draw from seeded generators, those of ``random`` and numpy too, restore them, and free the GPU's memory."""
    cuda = torch.device(device).type == "cuda"
    # Without a list it would make a context on every GPU of the machine.
    index = torch.device(device).index
    drawn_from = [torch.cuda.current_device() if index is None else index] if cuda else []
    try:
        with Stream(section.seed).drawn_from(), torch.random.fork_rng(devices=drawn_from):
            torch.manual_seed(section.seed)
            yield
    finally:
        if cuda:
            gc.collect()
            torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException | None) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (error is not None and _is_out_of_memory(error.__cause__))


def _check_steps(section: TrainSection, prepared: Prepared, model: nn.Module, *, notice: Warn) -> None:
    """Check that there is an optimizer, a schedule and a step to take; say so where there are fewer than asked."""
    train = prepared.splits["train"]
    steps = total_steps(section, rows=epoch_rows(train, seed=section.seed))
    if section.max_steps is not None and steps < section.max_steps:
        notice(
            f"train.epochs {section.epochs} ends the run after {steps} steps, before train.max_steps "
            f"{section.max_steps}: raise train.epochs, or leave it out"
        )
    if section.warmup_steps >= steps:
        notice(f"train.warmup_steps {section.warmup_steps} are all of the run's {steps} steps: lr only rises")
    Schedule(prepared.recipe, build_optimizer(prepared.recipe, model, section), section, steps=steps)


def _has_unused(
    section: TrainSection, prepared: Prepared, model: nn.Module, *, device: str, distributed: bool = True
) -> bool:
    """Check the loss of the first rows; return whether it leaves parameters unused, where ``distributed``."""
    batch = first_rows(section, prepared, device=device)
    loss = check_loss(section, prepared, model, batch, device=device)
    if not distributed:
        return False
    if (known := configured(section)) is not None:
        return known

    def again() -> torch.Tensor:
        return loss_of(section, prepared, model, batch, device=device).mean()

    return leaves_unused(model, loss, again=again)


def _refuse_unknown_sizes(model: nn.Module, *, name: str) -> None:
    lazy = [key for key, value in [*model.named_parameters(), *model.named_buffers()] if is_lazy(value)]
    if lazy:
        raise RecipeError(
            f"{name}.model() returned a model whose {', '.join(lazy[:3])} have no size yet",
            hint="Give lazy layers their sizes, or run one row through the model in model(): weights are loaded into "
            "what it returns.",
        )
