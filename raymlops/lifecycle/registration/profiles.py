"""Reference profiles of a model's inputs and answers, against which drift is measured later.

Owns how many rows are profiled, and how many are predicted at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.monitor.profile import profile
from raymlops.training.split_predictions import answered

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from raymlops.data.prepare import Prepared

PROFILE_ROWS = 50_000
"""About as many rows of a streamed split are held and profiled; of a table in memory, all are."""
ANSWERED_ROWS = 5_000
"""At most this many of them are predicted."""


def profiles(
    prepared: Prepared,
    model: nn.Module,
    *,
    batch_size: int,
    device: str,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return profiles of features and predictions of the training and the validation split, where they are tables.

    ``model`` is in evaluation mode, on ``device``. A prediction may be NaN or infinite: that is for the gate to judge.
    """
    inputs = [column.name for column in prepared.signature.inputs]
    found: dict[str, Any] = {}
    for name in ("train", "validation"):
        split = prepared.splits[name]
        columns = split.sample(about_rows=PROFILE_ROWS) if split.columns is None else split.columns
        if columns is None:
            continue
        features = {key: columns[key] for key in inputs}
        step = -(-len(next(iter(features.values()))) // ANSWERED_ROWS)
        sample = {key: values[::step] for key, values in features.items()}
        _, answers = answered(
            prepared.recipe,
            model,
            sample,
            batch_size=batch_size,
            device=device,
            finite=False,
            before_batch=before_batch,
        )
        found[name] = {
            "features": profile(features),
            "predictions": profile(answers),
        }
    return found
