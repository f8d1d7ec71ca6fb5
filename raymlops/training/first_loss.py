"""The loss of the first training rows, by the untrained model: it is finite, and has a gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from raymlops.errors import RecipeError
from raymlops.loss_value import loss_value
from raymlops.pytree import leaves
from raymlops.recipe import call_recipe, described, to_device
from raymlops.training.metric_checks import ROWS
from raymlops.training.model.batch_norm import normalizes_batches
from raymlops.training.model.precision import autocast

if TYPE_CHECKING:
    from torch import nn

    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared
    from raymlops.loss_value import LossValue


class NonFiniteLossError(RecipeError):
    """The loss of the first rows is NaN or infinite: by the recipe, or by the data."""


def first_rows(section: TrainSection, prepared: Prepared, *, device: str) -> Any:
    """Return the first training rows as a batch, no larger than the run's."""
    split = prepared.splits["train"]
    return to_device(split.batch(torch.arange(min(ROWS, split.rows, section.micro_batch_rows))), device)


def loss_of(section: TrainSection, prepared: Prepared, model: nn.Module, batch: Any, *, device: str) -> LossValue:
    """Return the loss of a batch in the precision of the run."""
    where = f"{type(prepared.recipe).__name__}.loss()"
    with autocast(section, device):
        return loss_value(call_recipe(where, lambda: prepared.recipe.loss(model, batch)), where=where)


def check_loss(section: TrainSection, prepared: Prepared, model: nn.Module, batch: Any, *, device: str) -> torch.Tensor:
    """Return the loss of the first training rows, which are ``batch``.

    Raises:
        NonFiniteLossError: it is not finite.
        RecipeError: it has no gradient, or cannot be computed.
    """
    where = f"{type(prepared.recipe).__name__}.loss()"
    rows = prepared.splits["train"].rows
    model.train()
    try:
        found = loss_of(section, prepared, model, batch, device=device)
        loss: torch.Tensor = found.mean()
    except RecipeError as error:
        if min(rows, section.micro_batch_rows) == 1 and normalizes_batches(model):
            raise _too_few_rows(section, error, rows=rows) from error
        if not any(isinstance(value, torch.Tensor) for _, value in leaves(batch)):
            encoded = prepared.splits["train"].is_table
            raise _no_tensors(error, batch, name=type(prepared.recipe).__name__, encoded=encoded) from error
        raise
    if not math.isfinite(loss.item()):
        bad = [name for name, part in found.parts.items() if not math.isfinite(part.item())]
        raise NonFiniteLossError(
            f"{f'the part {bad[0]} of ' if bad else ''}{where} is {loss.item()} on the first rows of train with the "
            "untrained model",
            hint="Look for missing or extreme values that encode() lets through, or a logarithm of zero.",
        )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trainable and not loss.requires_grad:
        raise RecipeError(f"{where} has no gradient", hint="Compute it from the model's output, not detached.")
    return loss


def _no_tensors(error: RecipeError, batch: Any, *, name: str, encoded: bool) -> RecipeError:
    held = ", ".join(sorted({type(value).__name__ for _, value in leaves(batch)})) or "nothing"
    where = f"{name}.{'encode' if encoded else 'collate'}()"
    return RecipeError(
        f"{error.message}; the batch has no tensor: {where} returned {described(batch)} of {held}",
        hint=f"Return tensors from {where}, rows first, in dicts, lists, tuples or dataclasses: they are moved to the "
        "device of the model.",
    )


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
