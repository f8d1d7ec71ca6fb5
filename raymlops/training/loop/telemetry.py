"""Telemetry of a rank: events with metrics, throughput, and system metrics of its machine.

Only rank 0 emits. System metrics have MLflow's own names where they mean the same, so that its page shows them; in a
container, CPU and memory are those of the whole machine.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from raymlops.display import Throttle
from raymlops.training.checkpoints.state import MAX_POINTS
from raymlops.training.events import COSTS, Event
from raymlops.training.loop.timing import Stopwatch, Throughput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.config.train import TrainSection
    from raymlops.recipe import RecipeBase
    from raymlops.records import Artifact
    from raymlops.training.checkpoints.state import RunState
    from raymlops.training.model.ranks import Ranks


EVERY_S = 10.0
"""Seconds between samples."""
_GB = 1e9
_MB = 1e6


class SystemMetrics:
    """Samples the machine of this process; rates are those since the previous sample, or since the start."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        import psutil

        self._psutil: Any = psutil
        self._clock = clock
        self._process = psutil.Process()
        psutil.cpu_percent()  # the first call has nothing to compare with, and answers 0
        self._network = self._network_bytes()
        self._at_s = clock()

    def sample(self) -> dict[str, float]:
        """Return ``system/...`` metrics: percentages from 0 to 100, GB and MB per second in powers of ten."""
        found = {
            "system/cpu_utilization_percentage": float(self._psutil.cpu_percent()),
            "system/system_memory_usage_percentage": float(self._psutil.virtual_memory().percent),
            "system/process_memory_gb": self._process.memory_info().rss / _GB,
        }
        network, now_s = self._network_bytes(), self._clock()
        if network is not None and self._network is not None and now_s > self._at_s:
            # Counters go back where an interface goes.
            received, sent = (max(0, after - before) for after, before in zip(network, self._network, strict=True))
            found["system/network_receive_mb_per_s"] = received / _MB / (now_s - self._at_s)
            found["system/network_transmit_mb_per_s"] = sent / _MB / (now_s - self._at_s)
        self._network, self._at_s = network, now_s
        return found | _accelerator()

    def _network_bytes(self) -> tuple[int, int] | None:
        """Return the bytes received and sent so far; None where the machine does not say."""
        try:
            counters = self._psutil.net_io_counters()
        except OSError:
            return None
        return None if counters is None else (int(counters.bytes_recv), int(counters.bytes_sent))


def _accelerator() -> dict[str, float]:
    """Return what this process' tensors hold of its GPU; nothing where torch is not loaded or uses none."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "system/gpu_memory_gb": torch.cuda.memory_allocated() / _GB,
        "system/gpu_memory_usage_percentage": 100.0 * (total - free) / total,
    }


class Reporter:
    """Sends events to ``emit``; ``watch`` adds up where the time goes."""

    def __init__(
        self,
        emit: Callable[[Event], None],
        recipe: RecipeBase,
        spec: TrainSection,
        *,
        steps: int,
        ranks: Ranks,
    ) -> None:
        self.watch = Stopwatch()
        self._emit = emit
        self._epochs, self._steps = spec.epochs or 0, steps
        self._speaks = ranks.rank == 0
        self._workers = ranks.world_size
        self._throughput = Throughput(
            workers=ranks.world_size, flops_per_row=recipe.flops_per_row(), peak_tflops=spec.peak_tflops
        )
        self._tokens_per_row = recipe.tokens_per_row() or 0
        self._system = SystemMetrics() if self._speaks else None
        self._system_due = Throttle(EVERY_S)
        self._started_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Return the seconds of training, those of earlier attempts up to their checkpoints included."""
        return time.monotonic() - self._started_s

    def resume(self, state: RunState) -> None:
        """Count the seconds of earlier attempts too."""
        self._started_s = time.monotonic() - state.elapsed_s

    def costs(self, *, rows: int) -> dict[str, float]:
        """Return throughput and shares of time since the last call, and every ten seconds the machine's load."""
        self.watch.mark("report")
        found = {**self._throughput.of(rows=rows, tokens=rows * self._tokens_per_row), **self.watch.take()}
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
        report: int = 0,
        artifact: Artifact | None = None,
    ) -> None:
        """Emit an event; ``state`` carries its metrics until they are known to be written."""
        if not self._speaks:
            return
        now_ms = int(time.time() * 1000)
        shown = dict(metrics or {})
        carried = shown if kind != "epoch" else {**shown, "epoch": float(epoch)}  # as the run's writer writes it
        # No checkpoint carries throughput and the like: repeated steps have other figures.
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
                report=report,
                workers=self._workers,
                tags=dict(tags or {}),
                artifact=artifact,
            )
        )
