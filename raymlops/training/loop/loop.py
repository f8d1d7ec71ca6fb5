"""The training loop, from top to bottom.

The arithmetic, for N training rows, a global batch of B rows and W workers: an epoch has ceil(N / B) steps; a
worker takes about B / W rows of each, in ``accumulate`` micro-batches; the gradient of a step is the exact mean over
its global batch, so that neither W nor ``accumulate`` changes a result beyond rounding (but for dropout, which each
rank draws for itself, and batch normalisation, which sees a micro-batch: of two rows at least where one is too few for
it, and a row that is left over alone is then normalised by the running statistics). The learning rate is a function of
the step alone, and so are random numbers: a run that resumes from a checkpoint takes the steps it would have taken.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from raymlops.data.order import leaves_single_rows, micro_batches
from raymlops.recipe import call_recipe, to_device
from raymlops.training.loop.batch_norm import normalizes_batches, one_row_is_too_few, running_statistics
from raymlops.training.loop.gradients import backward, clip_gradient
from raymlops.training.loop.losses import Losses
from raymlops.training.loop.optimizer import build_optimizer, learning_rate, set_lr
from raymlops.training.loop.parallel import local_only
from raymlops.training.loop.precision import autocast, optimizer_step, overflow_expected, scaler_of, skip_step
from raymlops.training.loop.step_check import Verdict, check_step, handle_fault
from raymlops.training.loop.step_errors import in_step

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from raymlops.training.loop.context import TrainContext


def default_loop(ctx: TrainContext) -> None:
    """Train the recipe's model until ``epochs``, ``max_steps``, ``patience`` or an order ends it.

    Raises:
        RecipeError: the recipe's code raises.
        NonFiniteError: a loss or gradient is NaN or infinite, and the policy is to stop; names epoch, step and rate.
    """
    model = ctx.model()
    loss_of = ctx.parallel(model)
    optimizer = build_optimizer(model, ctx.spec)
    may_need_pairs = normalizes_batches(model) and ctx.spec.micro_batch_rows > 1
    trained = _Trained(model, loss_of, optimizer, scaler_of(ctx.spec, ctx.device), None if may_need_pairs else False)
    ctx.restore(model=model, optimizer=optimizer, scaler=trained.scaler)
    losses = Losses(ctx)

    while not ctx.run_state.finished:
        model.train()
        end = _train_epoch(ctx, trained, losses)
        if end is _EpochEnd.STOPPED:
            return
        if end is _EpochEnd.ROLLED_BACK:
            losses.discard()
            continue
        metrics = {**losses.close_epoch(), **ctx.evaluate(model)}
        if ctx.report(epoch=ctx.run_state.epoch, step=ctx.run_state.step, metrics=metrics):
            return


@dataclass
class _Trained:
    model: nn.Module
    loss_of: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: Any
    in_pairs: bool | None
    """Whether a micro-batch needs two rows; None until the first one with a single row, which is when it is tested."""


class _EpochEnd(Enum):
    DONE = auto()
    STOPPED = auto()
    ROLLED_BACK = auto()


def _train_epoch(ctx: TrainContext, trained: _Trained, losses: Losses) -> _EpochEnd:
    """Take the remaining steps of the epoch in progress."""
    spec, state, train = ctx.spec, ctx.run_state, ctx.prepared.splits["train"]
    for indices in train.global_batches(
        batch_size=spec.batch_size, seed=spec.seed, epoch=state.epoch, skip=state.batch
    ):
        if state.step == ctx.steps:
            state.cut = [state.epoch, state.batch]
            break
        state.lr = learning_rate(spec, state.step, steps=ctx.steps)
        skipped = state.step + 1 in state.skipped
        if not skipped and _train_step(ctx, trained, losses, indices) is Verdict.ROLLBACK:
            return _EpochEnd.ROLLED_BACK
        state.step += 1
        state.batch += 1

        if state.step % spec.log_every_steps == 0 or state.step == ctx.steps:
            losses.log()
        ctx.heartbeat()
        agreed = ctx.agree()
        if agreed.due:
            losses.flush()
            ctx.save_checkpoint(last=bool(agreed.order))
        if agreed.order:
            return _EpochEnd.STOPPED
    return _EpochEnd.DONE


def _train_step(ctx: TrainContext, trained: _Trained, losses: Losses, indices: torch.Tensor) -> Verdict:
    """Take one optimizer step on a global batch, unless its loss or gradient is not finite."""
    optimizer, scaler = trained.optimizer, trained.scaler
    set_lr(optimizer, ctx.run_state.lr)
    buffers = [buffer.clone() for buffer in trained.model.buffers()] if ctx.guarded else []
    loss = _forward_backward(ctx, trained, indices)
    norm = clip_gradient(optimizer, scaler, max_norm=ctx.spec.clip_norm, need_norm=ctx.guarded)
    # fp16's gradients overflow while its scale is being found: the scaler skips those steps by itself.
    verdict = check_step(ctx, loss=loss, norm=None if scaler else norm)
    if verdict is not Verdict.TAKE:
        skip_step(scaler)
    elif not in_step(ctx, "the optimizer", partial(optimizer_step, optimizer, scaler)):
        verdict = verdict if overflow_expected(scaler) else handle_fault(ctx)
    if verdict is Verdict.TAKE:
        losses.add(loss / ctx.world_size, rows=len(indices))
    elif verdict is Verdict.SKIP:
        _restore_buffers(trained.model, buffers)
    ctx.watch.mark("optimizer")
    return verdict


def _forward_backward(ctx: TrainContext, trained: _Trained, indices: torch.Tensor) -> torch.Tensor:
    """Accumulate the gradient of one global batch and return this rank's part of its loss."""
    train = ctx.prepared.splits["train"]
    where = f"{type(ctx.recipe).__name__}.loss()"
    if trained.in_pairs is None and leaves_single_rows(len(indices), world=ctx.world_size, pieces=ctx.spec.accumulate):
        trained.in_pairs = _one_row_is_too_few(ctx, trained.model, indices[:1])
    paired = bool(trained.in_pairs)
    ctx.seed_step(ctx.run_state.step)
    trained.optimizer.zero_grad()
    total = torch.zeros((), device=ctx.device)
    pieces = micro_batches(
        indices,
        rank=ctx.rank,
        world=ctx.world_size,
        pieces=ctx.spec.accumulate,
        least_rows=2 if paired else 1,
    )
    for number, (piece, weight) in enumerate(pieces, start=1):
        batch = to_device(train.batch(piece), ctx.device)
        ctx.watch.mark("data")
        counts = weight > 0 and not (paired and len(piece) == 1 < train.rows)
        # Gradients are all-reduced once a step, with the last micro-batch.
        with local_only(trained.loss_of, last=number == len(pieces)), _normalization(trained, counts=counts):
            loss = call_recipe(where, lambda batch=batch: trained.loss_of(batch)) * weight  # type: ignore[misc]
            in_step(ctx, "the backward pass", partial(backward, loss, trained.scaler), batch=batch)
        total += loss.detach()
        ctx.watch.mark("forward_backward")
    return total


def _one_row_is_too_few(ctx: TrainContext, model: nn.Module, row: torch.Tensor) -> bool:
    """Run the same row through the model on every rank, before the step draws random numbers.

    Ranks agree on the answer, also where a model draws which of its layers run: all split their batches alike.
    """
    batch = to_device(ctx.prepared.splits["train"].batch(row), ctx.device)

    def forward() -> object:
        with autocast(ctx.spec, ctx.device):
            return ctx.recipe.loss(model, batch)

    found = torch.tensor(float(one_row_is_too_few(model, forward)), device=ctx.device)
    return bool(ctx.sum_over_ranks(found) > 0)


def _normalization(trained: _Trained, *, counts: bool) -> AbstractContextManager[None]:
    """Return the context of a micro-batch; the statistics of a single row or of filler rows do not count."""
    return running_statistics(trained.model) if trained.in_pairs and not counts else nullcontext()


def _restore_buffers(model: nn.Module, buffers: list[torch.Tensor]) -> None:
    """Undo a skipped forward pass's update of running statistics."""
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
