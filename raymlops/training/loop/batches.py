"""The batches left in the epoch in progress: of rows for the whole run, and of tensors for this rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.data.order import micro_batches
from raymlops.data.sampler import sampled_rows
from raymlops.errors import RecipeError
from raymlops.recipe import Progress, to_device
from raymlops.training.loop.outcome import StopAskedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from raymlops.recipe import Batch
    from raymlops.training.loop.context import TrainContext


def global_batches(ctx: TrainContext) -> Iterator[torch.Tensor]:
    """Yield the row numbers of each global batch left in the epoch, the same on every rank.

    Raises:
        RecipeError: ``sampler()`` breaks its contract.
    """
    spec, state, split = ctx.spec, ctx.run_state, ctx.prepared.splits["train"]
    split.start_epoch(seed=spec.seed, epoch=state.epoch)
    sampled = sampled_rows(split, seed=spec.seed, epoch=state.epoch)
    batches: Iterable[Any]
    if sampled is None:
        batches = split.global_batches(batch_size=spec.batch_size, seed=spec.seed, epoch=state.epoch, skip=state.batch)
    elif len(sampled) != ctx.epoch_rows:
        raise RecipeError(
            f"{type(ctx.recipe).__name__}.sampler() yielded {len(sampled)} rows for epoch {state.epoch}, and "
            f"{ctx.epoch_rows} for epoch 1",
            hint="Every epoch must be as long: the learning rate follows the number of steps.",
        )
    else:
        start = state.batch * spec.batch_size
        batches = (sampled[at : at + spec.batch_size] for at in range(start, len(sampled), spec.batch_size))
    for indices in batches:
        if spec.drop_last and len(indices) < spec.batch_size:
            return
        ctx.recipe.progress = Progress(state.step, state.epoch, ctx.steps)
        yield indices


def rank_batches(ctx: TrainContext) -> Iterator[Batch]:
    """Yield this rank's rows of each global batch left in the epoch, on its device; each one is counted as a step.

    Raises:
        RecipeError: ``sampler()`` breaks its contract.
        StopAskedError: an order, after a last checkpoint.
    """
    state, split = ctx.run_state, ctx.prepared.splits["train"]
    for indices in global_batches(ctx):
        if ctx.last_step is not None and state.step >= ctx.last_step:
            state.cut = [state.epoch, state.batch]
            return
        ctx.seed_step(state.step)
        ((piece, ctx.share),) = micro_batches(indices, rank=ctx.rank, world=ctx.world_size, pieces=1)
        batch = to_device(split.batch(piece), ctx.device)
        ctx.watch.mark("data")
        yield batch
        state.step += 1
        state.batch += 1
        ctx.watch.mark("forward_backward")
        ctx.heartbeat()
        agreed = ctx.agree()
        if agreed.due:
            ctx.save_checkpoint(last=bool(agreed.order))
        if agreed.order:
            raise StopAskedError(agreed.order, saved=True)
