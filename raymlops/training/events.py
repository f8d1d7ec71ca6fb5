"""The events of a training run: steps, epochs, notices, restarts, its end.

Knows nothing of training itself, nor of how they are displayed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from raymlops.display import Progress, duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.records import Artifact

COSTS = ("time/", "throughput/", "system/")
"""Prefixes of metrics that are for MLflow's charts alone: a dozen numbers that no line or bar has room for."""


@dataclass(frozen=True)
class Event(Progress):
    """One event of a run. Counts are of the whole run; ``metrics`` are those that are new."""

    kind: Literal["start", "step", "epoch", "end", "message", "restart", "artifact"]
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    report: int = 0
    """Number of the report, from 1; 0 where the event is none."""
    elapsed_s: float = 0.0
    message: str = ""
    rows_per_s: float = 0.0
    timestamp_ms: int = 0
    """Wall clock where the event happened."""
    workers: int = 0
    """Number of running workers; 0 where it is not known."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags to set on the run's MLflow record."""
    artifact: Artifact | None = None

    @property
    def eta_s(self) -> float | None:
        """Return the seconds left at the pace so far, or None before the first step."""
        return self.elapsed_s / self.step * (self.steps - self.step) if self.step and self.steps else None

    def after(self, previous: Self) -> Self:
        """Return the event with earlier metrics: those of an epoch are shown beside the next steps."""
        return replace(self, metrics={**previous.metrics, **self.metrics})

    def pairs(self) -> dict[str, Any]:
        """Return the pairs of a log line."""
        pairs: dict[str, Any] = {"event": self.kind}
        if self.epochs or self.epoch:
            pairs["epoch"] = f"{self.epoch}/{self.epochs}" if self.epochs else self.epoch
        if self.steps:
            pairs["step"] = f"{self.step}/{self.steps}"
        pairs |= {name: f"{value:.5g}" for name, value in self.metrics.items() if not name.startswith(COSTS)}
        if self.rows_per_s:
            pairs["rows_per_s"] = f"{self.rows_per_s:.0f}"
        if self.workers:
            pairs["workers"] = self.workers
        if self.elapsed_s:
            pairs["elapsed_s"] = f"{self.elapsed_s:.1f}"
        if self.kind in {"step", "epoch"} and self.eta_s is not None:
            pairs["eta_s"] = f"{self.eta_s:.0f}"
        if self.message:
            pairs["msg"] = self.message
        return pairs

    def renderable(self) -> Any:
        """Return a bar with the metrics, the rate and the time left beside it."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        numbers = [
            f"{name.removeprefix('validation/')} {value:.4g}"
            for name, value in self.metrics.items()
            if name != "train/lr" and not name.startswith(COSTS)
        ]
        if self.rows_per_s:
            numbers.append(f"{self.rows_per_s:,.0f} rows/s")
        if self.kind in {"step", "epoch"} and self.eta_s is not None:
            numbers.append(f"{duration(self.eta_s)} left")
        of = f"/{self.epochs}" if self.epochs else ""  # steps alone may end it
        head = self.message or (f"epoch {self.epoch}{of}" if self.epochs or self.epoch else self.kind)
        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(head, no_wrap=True),
            ProgressBar(total=self.steps or None, completed=self.step, width=16),
            Text(f"{self.step}/{self.steps or '?'}", no_wrap=True),
            Text("  ".join(numbers)),
        )
        return row


def words(text: str, *, tags: Mapping[str, str] | None = None) -> Event:
    """Return a notice; ``tags`` are those to set on the run's MLflow record."""
    return Event("message", message=text, timestamp_ms=int(time.time() * 1000), tags=tags or {})
