"""The global batches left in the epoch in progress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.data.sampler import sampled_rows
from raymlops.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from raymlops.config.train import TrainSection
    from raymlops.data.split import SplitData
    from raymlops.training.checkpoints.state import RunState


def global_batches(split: SplitData, spec: TrainSection, state: RunState, *, epoch_rows: int) -> Iterator[torch.Tensor]:
    """Yield the row numbers of each global batch left in the epoch, the same on every rank.

    Raises:
        RecipeError: ``sampler()`` breaks its contract, or yields another number of rows than ``epoch_rows``.
    """
    split.start_epoch(seed=spec.seed, epoch=state.epoch)
    sampled = sampled_rows(split, seed=spec.seed, epoch=state.epoch)
    batches: Iterable[Any]
    if sampled is None:
        batches = split.global_batches(batch_size=spec.batch_size, seed=spec.seed, epoch=state.epoch, skip=state.batch)
    elif len(sampled) != epoch_rows:
        raise RecipeError(
            f"{type(split.recipe).__name__}.sampler() yielded {len(sampled)} rows for epoch {state.epoch}, and "
            f"{epoch_rows} for epoch 1",
            hint="Every epoch must be as long: the learning rate follows the number of steps.",
        )
    else:
        start = state.batch * spec.batch_size
        batches = (sampled[at : at + spec.batch_size] for at in range(start, len(sampled), spec.batch_size))
    for indices in batches:
        if spec.drop_last and len(indices) < spec.batch_size:
            return
        yield indices
