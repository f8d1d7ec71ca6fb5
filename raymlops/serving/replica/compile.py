"""``torch.compile`` if it pays off: the compiled model is used only if it is faster and returns equal outputs.

Owns the comparison. Knows nothing of Serve.
"""

from __future__ import annotations

import logging
import statistics
import timeit
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

    from raymlops.arrays import Columns
    from raymlops.bundle.load import LoadedModel

logger = logging.getLogger("ray.serve.raymlops")

ROUNDS = 20
GAIN = 0.95
"""The compiled model must take at most this share of the time: a smaller gain is not worth another code path."""
RTOL, ATOL = 1e-4, 1e-5
"""Tolerances of its outputs: fused kernels add in another order."""


def compile_if_faster(loaded: LoadedModel) -> nn.Module:
    """Return the compiled model, or the original one if compiling fails, changes outputs or gains nothing.

    Both run on the bundle's example, alone and in larger batches, so that the relevant sizes are compiled before the
    first request.
    """
    import torch

    fused: Any = torch.compile(loaded.model, dynamic=True)
    compiled = replace(loaded, model=fused)
    try:
        times = []
        for batch in _batches(loaded):
            if not _equal(loaded.predict(batch), compiled.predict(batch)):
                logger.warning("torch.compile changes the outputs of the model; it is not used")
                return loaded.model
            times.append((_median_s(loaded, batch), _median_s(compiled, batch)))
    except Exception:
        logger.exception("torch.compile failed; the uncompiled model is used")
        return loaded.model
    before, after = (sum(pair[side] for pair in times) for side in (0, 1))
    used = after < GAIN * before
    logger.warning(
        "torch.compile: %.3f ms against %.3f ms, %s", after * 1e3, before * 1e3, "used" if used else "not used"
    )
    return compiled.model if used else loaded.model


def _batches(loaded: LoadedModel) -> list[Columns]:
    example = loaded.signature.parse_rows(loaded.example)
    sizes = (1, 8, 64)
    return [
        example,
        *({name: np.resize(array, (rows, *array.shape[1:])) for name, array in example.items()} for rows in sizes),
    ]


def _equal(one: Columns, other: Columns) -> bool:
    return all(
        np.allclose(array, other[name], rtol=RTOL, atol=ATOL, equal_nan=True)
        if array.dtype.kind == "f"
        else bool(np.array_equal(array, other[name]))
        for name, array in one.items()
    )


def _median_s(loaded: LoadedModel, columns: Columns) -> float:
    return statistics.median(timeit.repeat(lambda: loaded.predict(columns), number=1, repeat=ROUNDS))
