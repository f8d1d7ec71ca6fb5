"""What a rank tells of its training: events with their metrics, what they cost, and the points a checkpoint carries.

Rank 0 alone speaks. Knows nothing of who listens.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from raymlops.training.progress import COSTS, Event, Throttle
from raymlops.training.runstate import MAX_POINTS
from raymlops.training.system import EVERY_S, SystemMetrics
from raymlops.training.timing import Stopwatch, Throughput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.recipe import RecipeBase
    from raymlops.training.runstate import RunState


class Reporter:
    """Sends events to ``emit``; ``watch`` adds up where the time goes."""

    def __init__(
        self,
        emit: Callable[[Event], None],
        *,
        recipe: RecipeBase,
        epochs: int,
        steps: int,
        rank: int,
        workers: int,
        peak_tflops: float | None,
    ) -> None:
        self.watch = Stopwatch()
        self._emit = emit
        self._epochs, self._steps = epochs, steps
        self._speaks = rank == 0
        self._workers = workers
        self._throughput = Throughput(workers=workers, flops_per_row=recipe.flops_per_row(), peak_tflops=peak_tflops)
        self._tokens_per_row = recipe.tokens_per_row() or 0
        self._system = SystemMetrics() if self._speaks else None
        self._system_due = Throttle(EVERY_S)
        self._started_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Return the seconds of training, those of earlier attempts up to their checkpoints included."""
        return time.monotonic() - self._started_s

    def goes_on(self, state: RunState) -> None:
        """Count from where an earlier attempt left off."""
        self._started_s = time.monotonic() - state.elapsed_s

    def costs(self, *, rows: int) -> dict[str, float]:
        """Return throughput and shares of time since the last call, and every ten seconds the machine's load."""
        self._throughput.add(rows=rows, tokens=rows * self._tokens_per_row)
        self.watch.mark("report")
        found = {**self._throughput.take(), **self.watch.take()}
        if self._system is not None and self._system_due.due():
            found |= self._system.sample()
        return found

    def tell(
        self,
        kind: Any,
        state: RunState,
        *,
        epoch: int,
        step: int,
        metrics: dict[str, float] | None = None,
        message: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send an event, and let ``state`` carry its metrics until they are surely written."""
        if not self._speaks:
            return
        now_ms = int(time.time() * 1000)
        shown = dict(metrics or {})
        carried = shown if kind != "epoch" else {**shown, "epoch": float(epoch)}  # as the run's writer writes it
        # What training costs, no checkpoint carries along: done again, the figures are others.
        points = state.points
        points += [(name, value, step, now_ms) for name, value in carried.items() if not name.startswith(COSTS)]
        if len(points) > 2 * MAX_POINTS:
            del points[:-MAX_POINTS]
        self._emit(
            Event(
                kind,
                epoch=epoch,
                epochs=self._epochs,
                step=step,
                steps=self._steps,
                metrics=shown,
                elapsed_s=self.elapsed_s,
                rows_per_s=shown.get("throughput/rows_per_s", 0.0),
                timestamp_ms=now_ms,
                message=message,
                workers=self._workers,
                tags=dict(tags or {}),
            )
        )
