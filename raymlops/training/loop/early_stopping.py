"""The best report so far, and early stopping after ``patience`` reports without improvement. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raymlops.config.train import TrainSection
    from raymlops.training.checkpoints.state import RunState


@dataclass
class Best:
    """The best report so far by one metric. The first of equal values wins; NaN is never better.

    ``patience`` counts reports since the value improved by more than ``min_delta`` on ``waited_from``, where it last
    did: small steps in the right direction add up.
    """

    metric: str
    mode: str
    patience: int | None = None
    min_delta: float = 0.0
    epoch: int = 0
    value: float = math.nan
    waited: int = 0
    waited_from: float = math.nan

    @classmethod
    def of_run(cls, state: RunState, spec: TrainSection) -> Best:
        """Return the best report of a run so far."""
        value = math.nan if state.best_value is None else state.best_value
        waited_from = value if state.waited_from is None else state.waited_from
        return cls(
            spec.metric, spec.mode, spec.patience, spec.min_delta, state.best_epoch, value, state.waited, waited_from
        )

    def update(self, report: int, value: float) -> bool:
        """Record a report's value and return whether it is the best so far."""
        if self._gain(value, over=self.waited_from) > self.min_delta:
            self.waited, self.waited_from = 0, value
        else:
            self.waited += 1
        best = self._gain(value, over=self.value) > 0
        if best:
            self.epoch, self.value = report, value
        return best

    def _gain(self, value: float, *, over: float) -> float:
        if math.isnan(over):
            return math.inf if not math.isnan(value) else -math.inf
        return value - over if self.mode == "max" else over - value

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` reports have passed without improvement."""
        return self.patience is not None and self.waited >= self.patience
