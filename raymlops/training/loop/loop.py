"""The training loop, from top to bottom.

The arithmetic, for N training rows, a global batch of B rows and W workers: an epoch has ceil(N / B) steps; a
worker takes about B / W rows of each, in ``accumulate`` micro-batches; the gradient of a step is that of the exact
mean over its global batch, by rows or by the loss's own weights, so that neither W nor ``accumulate`` changes a result
beyond rounding (but for dropout, which each rank draws for itself, losses between the rows of a micro-batch, and batch
normalisation, which sees a micro-batch: of two rows at least where one is too few for it, and a row that is left over
alone is then normalised by the running statistics). The learning rate is a function of the step, or of a state that
checkpoints hold, and random numbers are a function of the step: a run that resumes from a checkpoint takes the steps it
would have taken.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from raymlops.data.order import leaves_single_rows, micro_batches
from raymlops.loss_value import training_step
from raymlops.recipe import call_recipe, to_device
from raymlops.training.ema import Ema
from raymlops.training.loop.gradients import backward, clip_gradient, scale_gradient
from raymlops.training.loop.losses import Losses, StepLoss
from raymlops.training.loop.optimizer import Schedule, build_optimizer
from raymlops.training.loop.step_check import Verdict, check_step, handle_fault
from raymlops.training.loop.step_errors import in_step
from raymlops.training.model.batch_norm import normalizes_batches, one_row_is_too_few, running_statistics
from raymlops.training.model.parallel import local_only
from raymlops.training.model.precision import autocast, optimizer_step, overflow_expected, scaler_of, skip_step

if TYPE_CHECKING:
    from torch import nn

    from raymlops.loss_value import LossValue
    from raymlops.training.loop.context import TrainContext


def default_loop(ctx: TrainContext) -> None:
    """Train the recipe's model until ``epochs``, ``max_steps``, ``patience`` or an order ends it.

    Raises:
        RecipeError: the recipe's code raises.
        NonFiniteError: a loss or gradient is NaN or infinite, and the policy is to stop; names epoch, step and rate.
    """
    model = ctx.model()
    loss_of = ctx.parallel(model, mean=False)
    optimizer = build_optimizer(ctx.recipe, model, ctx.spec)
    schedule = Schedule(ctx.recipe, optimizer, ctx.spec, steps=ctx.steps)
    ema = None if ctx.spec.ema is None else Ema(model, ctx.spec.ema)
    may_need_pairs = normalizes_batches(model) and ctx.spec.micro_batch_rows > 1
    in_pairs = None if may_need_pairs else False
    trained = _Trained(model, loss_of, optimizer, schedule, ema, scaler_of(ctx.spec, ctx.device), in_pairs)
    ctx.restore(model=model, optimizer=optimizer, scaler=trained.scaler, ema=ema, keep={"schedule": schedule})
    losses = Losses(ctx)

    while not ctx.run_state.finished:
        model.train()
        end = _train_epoch(ctx, trained, losses)
        if end is _EpochEnd.STOPPED:
            return
        if end is _EpochEnd.ROLLED_BACK:
            losses.discard()
        elif not _validates_at_end_of_epoch(ctx):
            _end_epoch(ctx, losses)
        elif _validated(ctx, trained, losses):
            return


@dataclass
class _Trained:
    model: nn.Module
    loss_of: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ema: Ema | None
    scaler: Any
    in_pairs: bool | None
    """Whether a micro-batch needs two rows; None until the first one with a single row, which is when it is tested."""

    def evaluated(self) -> AbstractContextManager[None]:
        """Return the context in which the model has the weights that are evaluated."""
        return nullcontext() if self.ema is None else self.ema.applied()


class _EpochEnd(Enum):
    DONE = auto()
    STOPPED = auto()
    ROLLED_BACK = auto()


def _train_epoch(ctx: TrainContext, trained: _Trained, losses: Losses) -> _EpochEnd:
    """Take the remaining steps of the epoch in progress."""
    spec, state = ctx.spec, ctx.run_state
    # An order may have come between a step and its validation.
    if _validates_now(ctx) and _validated(ctx, trained, losses, mid_epoch=True):
        return _EpochEnd.STOPPED
    for indices in ctx.global_batches(partial(_pieces, ctx, trained)):
        if state.step == ctx.steps:
            state.cut = [state.epoch, state.batch]
            break
        trained.schedule.before_step(state.step)
        state.lr = trained.schedule.lr
        skipped = state.step + 1 in state.skipped
        if not skipped and _train_step(ctx, trained, losses, indices) is Verdict.ROLLBACK:
            return _EpochEnd.ROLLED_BACK
        trained.schedule.after_step()
        state.step += 1
        state.batch += 1

        if state.step % spec.log_every_steps == 0 or state.step == ctx.steps:
            losses.log()
        ctx.heartbeat()
        agreed = ctx.agree()
        if agreed.due:
            losses.flush()
            ctx.save_checkpoint(last=bool(agreed.order))
        if agreed.order or (_validates_now(ctx) and _validated(ctx, trained, losses, mid_epoch=True)):
            return _EpochEnd.STOPPED
    return _EpochEnd.DONE


def _validates_now(ctx: TrainContext) -> bool:
    """Return whether a validation is due after the step that was counted last."""
    every, state = ctx.spec.eval_every_steps, ctx.run_state
    return every is not None and state.step > 0 == state.step % every and state.reported_step != state.step


def _validates_at_end_of_epoch(ctx: TrainContext) -> bool:
    """Return whether the epoch that has ended is evaluated: where it is done by steps, the last one alone."""
    state = ctx.run_state
    ends = state.step >= ctx.steps or state.epoch >= ctx.spec.last_epoch
    return ctx.spec.eval_every_steps is None or (ends and state.reported_step != state.step)


def _end_epoch(ctx: TrainContext, losses: Losses) -> None:
    """Count an epoch that ends without a report, and write the checkpoint that is due then."""
    state = ctx.run_state
    state.epoch, state.batch = state.epoch + 1, 0
    if (state.epoch - 1) % ctx.spec.checkpoint_every_epochs == 0:
        losses.flush()
        ctx.save_checkpoint(last=False)


def _validated(ctx: TrainContext, trained: _Trained, losses: Losses, *, mid_epoch: bool = False) -> bool:
    """Evaluate and report, and return whether to stop."""
    metrics = losses.since_report()
    with trained.evaluated():
        metrics |= ctx.evaluate(trained.model)
    if (value := metrics.get(ctx.spec.metric)) is not None:
        trained.schedule.after_report(value)
    return ctx.report(metrics, mid_epoch=mid_epoch)


def _train_step(ctx: TrainContext, trained: _Trained, losses: Losses, indices: torch.Tensor) -> Verdict:
    """Take one optimizer step on a global batch, unless its loss or gradient is not finite."""
    optimizer, scaler = trained.optimizer, trained.scaler
    buffers = [buffer.clone() for buffer in trained.model.buffers()] if ctx.guarded else []
    loss = _forward_backward(ctx, trained, indices)
    norm = clip_gradient(optimizer, scaler, max_norm=ctx.spec.clip_norm, need_norm=ctx.guarded)
    # fp16's gradients overflow while its scale is being found: the scaler skips those steps by itself.
    verdict = check_step(ctx, loss=loss.value, norm=None if scaler else norm)
    if verdict is not Verdict.TAKE:
        skip_step(scaler)
    elif in_step(ctx, "the optimizer", partial(optimizer_step, optimizer, scaler)):
        if trained.ema is not None:
            trained.ema.update(ctx.run_state.step + 1)
    elif not overflow_expected(scaler):
        verdict = handle_fault(ctx)
    if verdict is Verdict.TAKE:
        losses.add(loss, rows=len(indices))
    elif verdict is Verdict.SKIP:
        _restore_buffers(trained.model, buffers)
    ctx.watch.mark("optimizer")
    return verdict


def _forward_backward(ctx: TrainContext, trained: _Trained, indices: torch.Tensor) -> StepLoss:
    """Accumulate the gradient of one global batch and return this rank's part of its loss.

    The gradients of ranks are averaged, so that with B rows in the global batch, a micro-batch's mean counts times
    (its rows * ranks / B). A sum with weights counts times (ranks / B), and the gradient, once all weights are known,
    times (B / sum of weights).
    """
    train, rows = ctx.prepared.splits["train"], len(indices)
    where = f"{type(ctx.recipe).__name__}.loss()"
    if trained.in_pairs is None and leaves_single_rows(rows, world=ctx.world_size, pieces=ctx.spec.accumulate):
        trained.in_pairs = _one_row_is_too_few(ctx, trained.model, indices[:1])
    paired = bool(trained.in_pairs)
    ctx.seed_step(ctx.run_state.step)
    trained.optimizer.zero_grad()
    pieces = _pieces(ctx, trained, indices)
    total: StepLoss | None = None
    for number, (piece, share) in enumerate(pieces, start=1):
        batch = ctx.batch(train, piece)
        ctx.watch.mark("data")
        counts = share > 0 and not (paired and len(piece) == 1 < train.rows)
        # Gradients are all-reduced once a step, with the last micro-batch.
        with local_only(trained.loss_of, last=number == len(pieces)), _normalization(trained, counts=counts):
            with training_step(counts=share > 0):
                loss: LossValue = call_recipe(where, partial(trained.loss_of, batch))
            times = share if loss.weight is None else ctx.world_size / rows * (share > 0)
            in_step(ctx, "the backward pass", partial(backward, loss.value, trained.scaler, times=times), batch=batch)
        part = StepLoss.of(loss, rows=share * rows / ctx.world_size, all_rows=rows)
        total = part if total is None else total.plus(part)
        ctx.watch.mark("forward_backward")
    assert total is not None
    if isinstance(total.weight, torch.Tensor):
        weight = ctx.sum_over_ranks(total.weight.clone())
        scale_gradient(trained.optimizer, torch.where(weight > 0, rows / weight, 0.0))
    return total


def _pieces(ctx: TrainContext, trained: _Trained, indices: torch.Tensor) -> list[tuple[torch.Tensor, float]]:
    """Return this rank's micro-batches of a global batch, with their weights."""
    return micro_batches(
        indices,
        rank=ctx.rank,
        world=ctx.world_size,
        pieces=ctx.spec.accumulate,
        least_rows=2 if trained.in_pairs else 1,
    )


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
