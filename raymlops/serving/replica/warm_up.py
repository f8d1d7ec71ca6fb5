"""The warm-up of a replica: batches of every size that requests may form, before the first request.

What is slow once per size or grows with it (compilation, allocation, the choice of kernels) is paid here, and a model
that does not fit at its largest batch says so here.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.errors import InsufficientResourcesError
from raymlops.serving.replica import memory

if TYPE_CHECKING:
    from raymlops.arrays import Columns
    from raymlops.serving.replica.batcher import Batcher

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log

ROUNDS = 5
"""Of the example itself, which also measure the model."""
GROWTH = 8
"""From one size of a batch to the next."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What a warm-up took."""

    batch_rows: int
    """Rows of its largest batch."""
    seconds: float
    peak_memory_bytes: int
    """Of the whole process until then."""
    peak_gpu_memory_bytes: int | None
    """What torch held of the GPU; None without one."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    def __str__(self) -> str:
        gpu = self.peak_gpu_memory_bytes
        on_gpu = "" if gpu is None else f", {gpu / memory.GB:.2f} GB of the GPU"
        return (
            f"batches of up to {self.batch_rows} rows in {self.seconds:.2f} s, "
            f"peak memory {self.peak_memory_bytes / memory.GB:.2f} GB{on_gpu}"
        )


def warm_up(
    batcher: Batcher, example: Columns, *, timeout_s: float, memory_bytes: int | None
) -> tuple[Columns, WarmUp]:
    """Run an example of n rows, then one row, and more and more, up to the largest batch; return the example's outputs.

    Batches that would take longer than a request may (``timeout_s``) are left out: their requests are not answered.

    Raises:
        InsufficientResourcesError: a batch does not fit into the memory of the replica or its GPU.
        Exception: the model raised.
    """
    start = time.perf_counter()
    rows = len(next(iter(example.values())))
    for _ in range(ROUNDS):
        outputs = _run(batcher, example, rows, memory_bytes)
    largest, size = batcher.largest(example), 1
    while True:
        began = time.perf_counter()
        _run(
            batcher,
            {name: np.resize(array, (size, *array.shape[1:])) for name, array in example.items()},
            size,
            memory_bytes,
        )
        took, following = time.perf_counter() - began, min(size * GROWTH, largest)
        if following <= size:
            break
        if took * following / size > timeout_s:
            logger.warning(
                "a batch of %d rows took %.2f s, so that one of %d would be later than serve.timeout_s (%g s): lower "
                "serve.max_batch_rows or serve.max_batch_elements",
                *(size, took, following, timeout_s),
            )
            break
        size = following
    found = WarmUp(size, time.perf_counter() - start, memory.peak_bytes(), memory.gpu_peak_bytes())
    logger.warning("warm-up: %s", found)
    return outputs, found


def _run(batcher: Batcher, columns: Columns, rows: int, memory_bytes: int | None) -> Columns:
    when = f"with a batch of {rows} rows"
    try:
        outputs = batcher.measure(columns, rows=rows)
    except Exception as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # torch's, of a GPU
            raise
        raise InsufficientResourcesError(
            f"a replica has not enough memory {when}: {error}",
            hint="Lower serve.max_batch_rows or serve.max_batch_elements, or raise serve.gpus_per_replica.",
        ) from error
    memory.require_within(memory_bytes, used=memory.peak_bytes, when=when)
    return outputs
