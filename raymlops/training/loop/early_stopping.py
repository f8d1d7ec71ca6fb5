"""The best epoch so far, and early stopping after ``patience`` epochs without a better one. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Best:
    """The best epoch so far by one metric. The first of equal values wins; NaN is never better."""

    metric: str
    mode: str
    patience: int | None = None
    epoch: int = 0
    value: float = math.nan
    waited: int = 0

    def update(self, epoch: int, value: float) -> bool:
        """Record an epoch's value and return whether it is the best so far."""
        better = value > self.value if self.mode == "max" else value < self.value
        if better or (math.isnan(self.value) and not math.isnan(value)):
            self.epoch, self.value, self.waited = epoch, value, 0
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` epochs have passed without improvement."""
        return self.patience is not None and self.waited >= self.patience
