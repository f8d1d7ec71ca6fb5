"""The training loop, from top to bottom.

The arithmetic, for N training rows, a global batch of B rows and W workers: an epoch has ceil(N / B) steps; a
worker takes about B / W rows of each, in ``accumulate`` micro-batches; the gradient of a step is the exact mean over
its global batch, so that neither W nor ``accumulate`` changes a result beyond rounding (but for dropout, which each
rank draws for itself, and batch normalisation, which sees a micro-batch: of two rows at least where one is too few for
it, and a row that is left over alone is then normalised by the running statistics). The learning rate is a function of
the step alone, and so is what is drawn at random: a run that goes on from a checkpoint takes the steps it would have
taken.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from raymlops.data.order import leaves_single_rows, micro_batch_rows, micro_batches
from raymlops.recipe import call_recipe, to_device
from raymlops.training.loop.batch_norm import normalizes_batches, one_row_is_too_few, running_statistics
from raymlops.training.loop.losses import Losses
from raymlops.training.loop.optimizer import build_optimizer, lr_factor, set_lr
from raymlops.training.loop.parallel import local_only
from raymlops.training.loop.precision import (
    autocast,
    backward,
    gradient_norm,
    overflow_expected,
    scaler_of,
    skip,
    take_step,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from raymlops.config.train import TrainSection
    from raymlops.training.loop.context import TrainContext


def default_loop(ctx: TrainContext) -> None:
    """Train the recipe's model until ``epochs``, ``max_steps`` or ``patience`` end it, or an order does.

    Raises:
        RecipeError: the recipe's code raises.
        NonFiniteError: a loss or gradient is NaN or infinite, and the policy is to stop; names epoch, step and rate.
    """
    model = ctx.model()
    loss_of = ctx.parallel(model)
    optimizer = build_optimizer(model, ctx.spec)
    asked = normalizes_batches(model) and _may_pair(ctx.spec)
    trained = _Trained(model, loss_of, optimizer, scaler_of(ctx.spec, ctx.device), None if asked else False)
    ctx.restore(model=model, optimizer=optimizer, scaler=trained.scaler)
    losses = Losses(ctx)

    while not ctx.run_state.finished:
        model.train()
        end = _epoch(ctx, trained, losses)
        if end == "stopped":
            return
        if end == "rolled back":
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
    """Whether a micro-batch needs two rows; None as long as none had a single one, which is when it is found out."""


def _epoch(ctx: TrainContext, trained: _Trained, losses: Losses) -> Literal["done", "stopped", "rolled back"]:
    """Take the steps that are left of the epoch in progress."""
    spec, state, train = ctx.spec, ctx.run_state, ctx.prepared.splits["train"]
    optimizer, scaler = trained.optimizer, trained.scaler
    for indices in train.global_batches(
        batch_size=spec.batch_size, seed=spec.seed, epoch=state.epoch, skip=state.batch
    ):
        if state.step == ctx.steps:
            state.cut = [state.epoch, state.batch]
            break
        if state.step + 1 not in state.skipped:
            factor = lr_factor(
                state.step, steps=ctx.steps, schedule=spec.schedule, warmup_fraction=spec.warmup_fraction
            )
            lr = spec.lr * factor
            set_lr(optimizer, lr)
            buffers = [buffer.clone() for buffer in trained.model.buffers()] if ctx.guarded else []
            loss = _gradient(ctx, trained, indices)
            norm = gradient_norm(optimizer, scaler, clip_norm=spec.clip_norm, need_norm=ctx.guarded)
            # fp16's gradients overflow while its scale is being found: take_step leaves those steps out by itself.
            verdict = ctx.judge(loss=loss, norm=None if scaler else norm, lr=lr)
            if verdict != "take":
                skip(scaler)
            elif not take_step(optimizer, scaler) and not overflow_expected(scaler):
                verdict = ctx.fault(lr=lr)
            if verdict == "rollback":
                losses.forget()
                return "rolled back"
            if verdict == "take":
                losses.add(loss / ctx.world_size, rows=len(indices), lr=lr)
            else:
                _put_back(trained.model, buffers)
            ctx.watch.mark("optimizer")
        state.step += 1
        state.batch += 1

        if state.step % spec.log_every_steps == 0 or state.step == ctx.steps:
            losses.log()
        if ctx.after_step(before_save=losses.settle):
            return "stopped"
    return "done"


def _gradient(ctx: TrainContext, trained: _Trained, indices: torch.Tensor) -> torch.Tensor:
    """Compute the gradient of one global batch and return this rank's part of its loss."""
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
        # Gradients travel once a step, with the last micro-batch.
        with local_only(trained.loss_of, last=number == len(pieces)), _normalization(trained, counts=counts):
            loss = call_recipe(where, lambda batch=batch: trained.loss_of(batch)) * weight  # type: ignore[misc]
            backward(loss, trained.scaler)
        total += loss.detach()
        ctx.watch.mark("forward_backward")
    return total


def _one_row_is_too_few(ctx: TrainContext, model: nn.Module, row: torch.Tensor) -> bool:
    """Run a row through the model, the same one on every rank, before the step's numbers are drawn.

    Ranks agree, also where a model draws which of its layers run: all cut their batches alike.
    """
    batch = to_device(ctx.prepared.splits["train"].batch(row), ctx.device)

    def forward() -> object:
        with autocast(ctx.spec, ctx.device):
            return ctx.recipe.loss(model, batch)

    found = torch.tensor(float(one_row_is_too_few(model, forward)), device=ctx.device)
    return bool(ctx.sum_over_ranks(found) > 0)


def _may_pair(spec: TrainSection) -> bool:
    """Return whether micro-batches of two rows fit: not where the configuration makes them single rows throughout."""
    return micro_batch_rows(spec.batch_size, world=max(1, spec.workers[0]), pieces=spec.accumulate) > 1


def _normalization(trained: _Trained, *, counts: bool) -> AbstractContextManager[None]:
    """Return the context of a micro-batch, whose statistics do not count if it is a single row or fills up."""
    return running_statistics(trained.model) if trained.in_pairs and not counts else nullcontext()


def _put_back(model: nn.Module, buffers: list[torch.Tensor]) -> None:
    """Undo what a forward pass that does not count left in running statistics."""
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
