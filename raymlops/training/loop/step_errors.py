"""Errors of a step that torch raises without a line of the recipe: in the backward pass, in the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from raymlops.recipe import Batch, call_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.training.loop.context import TrainContext

T = TypeVar("T")


def in_step(ctx: TrainContext, what: str, function: Callable[[], T], *, batch: Batch = None) -> T:
    """Call a part of a step.

    Raises:
        RecipeError: it raises; with the recipe's line or, where torch ran none, with the step and the batch's shapes.
    """

    def place() -> str:
        state = ctx.run_state
        text = f"in step {state.step + 1}, epoch {state.epoch}"
        return text if batch is None else f"{text}, with a batch of {shapes(batch)}"

    found: T = call_recipe(f"{type(ctx.recipe).__name__}: {what}", function, place=place)
    return found


def shapes(batch: Batch) -> str:
    """Return the shape and type of each tensor of a batch: ``x (64, 3) float32, label (64) int64``."""
    if isinstance(batch, Mapping):
        return ", ".join(f"{name} {shapes(value)}" for name, value in batch.items())
    if isinstance(batch, tuple | list):
        return ", ".join(map(shapes, batch))
    shape: Any = getattr(batch, "shape", None)
    if shape is None:
        return type(batch).__name__
    return f"({', '.join(map(str, shape))}) {str(batch.dtype).removeprefix('torch.')}"
