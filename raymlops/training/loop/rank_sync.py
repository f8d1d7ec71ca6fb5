"""What the ranks of a run must decide alike: to stop, to write a checkpoint, how often they have reported.

Each rank sees orders and clocks of its own; acting on them alone would leave the others waiting in a collective. So
they are reduced from time to time, over a group that never waits for a GPU. Knows nothing of models.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from raymlops.errors import RecipeError
from raymlops.training.model.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Callable

ORDERS = ("", "resized", "drained", "interrupted")
"""Reasons to stop after a last checkpoint; where ranks differ, the later one wins."""
EVERY_S = 0.25
"""An exchange takes about 0.3 ms between processes of one machine, so that fast steps do not each have one."""
GROWTH = 2
"""How many times longer than before ranks may go without asking: one fast step says little of the next."""


class Agreed(NamedTuple):
    """What all ranks do now: stop for the reason ``order``, and write a checkpoint if one is ``due``."""

    order: str = ""
    due: bool = False


class Agreement:
    """One rank's part. ``orders`` returns this rank's reason to stop, or an empty text.

    A checkpoint is due every so many minutes, once ``ready`` is true: when the one before is written.
    """

    def __init__(
        self,
        orders: Callable[[], str],
        *,
        every_minutes: float | None,
        ready: Callable[[], bool] = lambda: True,
        ranks: Ranks | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._orders = orders
        self._ready = ready
        self._every_s = None if every_minutes is None else every_minutes * 60
        self._ranks = ranks or Ranks()
        self._clock = clock
        self._saved_at = clock()
        self._asked_at = self._saved_at
        self._asked_step = 0
        self._next_step = 0
        self._wait = 1

    def saved(self) -> None:
        """Restart the interval until the next checkpoint."""
        self._saved_at = self._clock()

    def moved_to(self, step: int) -> None:
        """Reset at a step, forward or back: the measured pace no longer counts."""
        self._asked_step, self._next_step, self._wait = step, 0, 1

    def at_step(self, step: int) -> Agreed:
        """Return what is agreed after a step; most steps need no exchange. Every rank must call it at every step."""
        if self._ranks.world_size == 1:
            return Agreed(self._orders(), due=self._due())
        if step < self._next_step:
            return Agreed()
        now = self._clock()
        pace_s = (now - self._asked_at) / max(1, step - self._asked_step)
        wait = max(1, min(int(EVERY_S / pace_s), GROWTH * self._wait + 1)) if pace_s > 0 else 1
        order, due, self._wait = self._exchange(wait, self._due())
        self._asked_at, self._asked_step, self._next_step = now, step, step + self._wait
        return Agreed(ORDERS[order], due=bool(due))

    def at_report(self, reports: int, *, stop: bool) -> tuple[bool, str]:
        """Return whether to stop, as rank 0 has it, and an order.

        Raises:
            RecipeError: a rank has reported less often, or has ended.
        """
        if self._ranks.world_size == 1:
            return stop, self._orders()
        order, stops, _ = self._exchange(0, stop, reports=reports)
        return bool(stops), ORDERS[order]

    def at_end(self, reports: int) -> None:
        """Make sure that every rank ends after equally many reports.

        Raises:
            RecipeError: another rank reports again.
        """
        if self._ranks.world_size > 1:
            self._exchange(0, False, reports=reports, ended=True)

    def _due(self) -> bool:
        return self._every_s is not None and self._clock() - self._saved_at >= self._every_s and self._ready()

    def _exchange(self, wait: int, flag: bool, *, reports: int = -1, ended: bool = False) -> tuple[int, int, int]:
        leads = self._ranks.rank == 0
        # Rank 0's wait and flag count; -1 marks an exchange at a step, which a report must not meet.
        mine = [ORDERS.index(self._orders()), int(flag and leads), wait if leads else 0]
        both = [reports, -reports, int(ended), -int(ended)]
        vector = torch.tensor([*mine, *both])
        torch.distributed.all_reduce(vector, op=torch.distributed.ReduceOp.MAX, group=self._ranks.control)
        order, flags, wait, most, least, any_ended, all_ended = vector.tolist()
        if most != -least or any_ended != -all_ended:
            raise RecipeError(
                f"train_loop() ranks diverged: one rank is at report {max(most, 0)}, another "
                f"{'has ended' if any_ended else 'is'} at {max(-least, 0)}",
                hint="Every rank must call ctx.report() equally often: shard rows so that all have as many steps.",
            )
        return order, flags, wait
