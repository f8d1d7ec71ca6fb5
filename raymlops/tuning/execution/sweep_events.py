"""The events that a sweep's controller emits to the progress display, each with the state of the sweep.

Owns the rate from which the time left follows, and that a display which raises is asked no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.tuning import budget
from raymlops.tuning.reporting.progress import SweepEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.config.sweep import SweepSection
    from raymlops.tuning.budget import Meter
    from raymlops.tuning.reporting.progress import Board, EventKind
    from raymlops.tuning.study.trials import Trials


class SweepEvents:
    """Emits events from what the board shows and the meter counts."""

    def __init__(
        self,
        board: Board,
        trials: Trials,
        *,
        section: SweepSection,
        meter: Meter,
        on_event: Callable[[SweepEvent], None] | None,
    ) -> None:
        self._board = board
        self._trials = trials
        self._section = section
        self._meter = meter
        self._on_event = on_event
        self._ended_before = board.ended

    def emit(self, kind: EventKind, number: int | None, *, message: str = "") -> None:
        """Emit an event of a trial, or of the whole sweep."""
        if self._on_event is None:
            return
        board, here_s, spent = self._board, self._meter.here_s, self._meter.spent
        total = self._trials.total + self._trials.repeats
        rate = (board.ended - self._ended_before) / here_s if here_s > 0 else 0.0
        event = SweepEvent(
            kind=kind,
            number=number,
            counts=board.counts,
            rows=board.rows(),
            total=total,
            metric=self._trials.objectives[0].metric,
            best=board.best,
            elapsed_s=spent.wall_s,
            eta_s=(total - board.ended) / rate if rate else None,
            message=message,
            cost=budget.priced(self._section, spent),
        )
        try:
            self._on_event(event)
        except Exception:
            self._on_event = None  # once is enough: open trials still have to be closed
            raise
