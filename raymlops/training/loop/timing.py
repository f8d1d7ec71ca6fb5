"""Time shares and throughput of a training.

Owns the arithmetic; the loop marks when a part ends. Pure.

Marks measure the host's time. On a CPU that is all there is. On a GPU kernels run behind the host, so that their time
shows up where the host waits for them: most often where a loss is read for a log (``report``) or gradients are looked
at (``optimizer``). ``data`` and ``checkpoint`` are the host's own and right on both.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = ("data", "forward_backward", "optimizer", "checkpoint", "report", "other")


class Stopwatch:
    """Adds up the time of each part: a mark ends a part, which gets the time since the last mark.

    A mark costs a small part of a microsecond, so that a loop may mark every micro-batch.
    """

    __slots__ = ("_clock", "_last", "_spent")

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._last = clock()

    def mark(self, part: str) -> None:
        """Add the time since the last mark to ``part``, one of ``PARTS``."""
        now = self._clock()
        self._spent[part] += now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """Return each part's share of the time since the last call, as ``time/part``; they add up to 1.

        Unmarked time is ``other``. Empty where no time has passed.
        """
        self.mark("other")
        spent, self._spent = self._spent, dict.fromkeys(PARTS, 0.0)
        total = sum(spent.values())
        return {f"time/{part}": seconds / total for part, seconds in spent.items()} if total > 0 else {}


class Throughput:
    """Measures rows and tokens per second of the whole run, over all its workers.

    ``flops_per_row`` are the model's floating point operations for one row, forward and backward, without the
    recomputation of activation checkpointing; ``peak_tflops`` is the peak of one worker's device.
    """

    def __init__(
        self,
        *,
        workers: int,
        flops_per_row: float | None = None,
        peak_tflops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._flops_per_row = flops_per_row
        self._peak_flops = None if peak_tflops is None else peak_tflops * 1e12 * max(1, workers)
        self._clock = clock
        self._since = clock()

    def of(self, *, rows: int, tokens: int = 0) -> dict[str, float]:
        """Return ``throughput/...`` of the rows and tokens since the last call: their rates, and the model FLOPs use.

        ``mfu``, from 0 to 1, is the operations per second that the model needs over those that the devices could do
        (PaLM, arXiv:2204.02311, appendix B). Empty without rows.
        """
        now = self._clock()
        seconds, self._since = now - self._since, now
        if not rows or seconds <= 0:
            return {}
        found = {"throughput/rows_per_s": rows / seconds}
        if tokens:
            found["throughput/tokens_per_s"] = tokens / seconds
        if self._flops_per_row is not None and self._peak_flops is not None:
            found["throughput/mfu"] = self._flops_per_row * rows / seconds / self._peak_flops
        return found
