"""How a rank talks to the process that runs it, and what a loop returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.training.events import Event


@dataclass(frozen=True)
class Hooks:
    """How a rank talks to the process that runs it."""

    emit: Callable[[Event], None] = lambda _event: None
    orders: Callable[[], str] = lambda: ""
    """Returns why to stop after a last checkpoint; empty while there is no reason."""
    heartbeat: Callable[[int], None] = lambda _step: None
    """Called with the steps done, at each step and evaluation batch and while data is read."""
    should_stop: Callable[[int, dict[str, float]], bool] = lambda _report, _metrics: False
    """Called with each report's number and metrics, also with the last one."""
    trial: bool = False
    """Whether this is a trial of a sweep: of it the metrics of reports are kept, and no test split is evaluated."""


@dataclass
class Outcome:
    """The result of a loop: ``history`` holds the metrics of each report, in order: one an epoch by default."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    """Which report is the best, counted from 1."""
    best_step: int | None = None
    """The step of the best report, where reports come by steps."""
    epochs: int = 0
    steps: int = 0
    stopped: str = ""
    """The order that stopped the loop early; it can be resumed from its last checkpoint."""
    test: dict[str, float] = field(default_factory=dict)
    """Metrics of the test split with the weights that are kept; empty where it was not evaluated."""
    workers: int = 1
    """The number of ranks at the end."""

    @property
    def metrics(self) -> dict[str, float]:
        """Return the metrics of the best report."""
        return self.history[self.best_epoch - 1]


class StopAskedError(BaseException):
    """Stops a loop early; not an Exception, so that no recipe handles it as an error of its own."""

    def __init__(self, order: str, *, saved: bool = False) -> None:
        super().__init__(order, saved)
        self.order = order
        self.saved = saved
        """Whether a last checkpoint holds all that was done."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.order, self.saved)


def _rebuilt(order: str, saved: bool) -> StopAskedError:
    return StopAskedError(order, saved=saved)
