"""A trial of a sweep that has not ended, as its driver holds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raymlops.config.space import Scalar
    from raymlops.tuning.study.records import Report


@dataclass
class OpenTrial:
    """A trial that has not ended yet."""

    number: int
    """Optuna's too."""
    params: dict[str, Scalar]
    trial_id: int
    """Optuna's key of it in the storage."""
    value: float | None = None
    """The sweep's metric, of several the first, at the best epoch so far."""
    epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the best epoch so far."""
    reports: dict[int, Report] = field(default_factory=dict)
    """By epoch."""
    reported: dict[int, float] = field(default_factory=dict)
    """Value by epoch that the study has or will have at the next flush."""
    before_s: float = 0.0
    """Seconds that it ran in previous processes."""
    started_s: float | None = None
    """When it got its process; None while it has none."""
    repeat_of: int | None = None
    """The trial whose configuration it trains with another seed."""
    seed: int | None = None
    """That seed; None for ``train.seed``."""
    fingerprint: str = ""
    """Of its data, in a sweep with repeats."""

    @property
    def settings(self) -> dict[str, Scalar]:
        """Return its parameters, with its own seed."""
        return self.params if self.seed is None else {**self.params, "train.seed": self.seed}

    @property
    def history(self) -> dict[int, dict[str, float]]:
        """Return metrics by epoch."""
        return {epoch: report.metrics for epoch, report in self.reports.items()}
