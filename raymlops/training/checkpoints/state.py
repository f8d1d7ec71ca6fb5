"""A run's progress, which a checkpoint holds beside tensors, as JSON. Pure.

Random state is not part of it: it is derived from seed, step and rank, for any number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.records import MetricPoint


MAX_POINTS = 20_000
"""Metric points kept in a checkpoint; older ones were logged long ago."""


@dataclass
class RunState:
    """A run's progress. ``epoch`` and ``batch`` are the next ones to train, ``history`` holds the reports.

    ``points`` are the metrics as they were logged: a driver that died may not have written the last of them.
    """

    epoch: int = 1
    """The epoch in progress, counted from 1."""
    batch: int = 0
    """Completed global batches of that epoch."""
    step: int = 0
    """Optimizer steps of the run, skipped ones included."""
    lr: float = 0.0
    """Learning rate of the last step; 0 in a checkpoint that an earlier version wrote."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of each report, in order."""
    best_epoch: int = 0
    """Which report is the best, counted from 1."""
    best_value: float | None = None
    waited: int = 0
    """Reports since the best."""
    waited_from: float | None = None
    """The value that an improvement is measured from, where ``train.min_delta`` asks for more than any."""
    reported_step: int = -1
    """Steps at the last report; -1 where an earlier version wrote the checkpoint."""
    best_step: int = 0
    """Steps at the best report."""
    loss_sums: dict[str, float] = field(default_factory=dict)
    loss_rows: float = 0.0
    """Training loss and its parts, summed over rows or by the loss's own weights, and these, since the last report."""
    log_sums: dict[str, float] = field(default_factory=dict)
    log_rows: float = 0.0
    """The same since the last log."""
    points: list[MetricPoint] = field(default_factory=list)
    cut: list[int] | None = None
    """Epoch and batch where ``max_steps`` cut an epoch short: a resumed run continues there."""
    skipped: list[int] = field(default_factory=list)
    """Steps whose batch was skipped."""
    faults: list[int] = field(default_factory=list)
    """Steps with a non-finite loss or gradient, which is why batches were skipped."""
    elapsed_s: float = 0.0
    """Seconds of training up to this checkpoint, over all attempts."""
    finished: bool = False
    """Whether there is nothing left to train."""

    def to_dict(self) -> dict[str, Any]:
        """Return a copy as JSON data, with the newest points only."""
        return {
            **vars(self),
            "history": [dict(metrics) for metrics in self.history],
            "loss_sums": dict(self.loss_sums),
            "log_sums": dict(self.log_sums),
            "skipped": list(self.skipped),
            "faults": list(self.faults),
            "points": self.points[-MAX_POINTS:],  # tuples need no copies, and there are thousands
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a state; keys that a newer version wrote are ignored."""
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        for sums, before in (("loss_sums", "loss_sum"), ("log_sums", "log_sum")):  # one sum, before losses had parts
            if sums not in known and before in data:
                known[sums] = {"loss": data[before]} if data[before.replace("sum", "rows")] else {}
        points = [(str(name), float(value), int(step), int(ms)) for name, value, step, ms in known.pop("points", [])]
        return cls(**known, points=points)
