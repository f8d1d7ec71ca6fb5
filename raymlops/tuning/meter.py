"""What a sweep takes while it runs: which trials have room, since when, and what each of them reserves.

Owns the clock of a sweep. Knows nothing of budgets.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING

from raymlops.tuning import budget
from raymlops.tuning.standstill import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.config.schema import SweepSection
    from raymlops.records import SpentRecord

SHORT_S = 2.0
_DURATIONS = 20


class Meter:
    """Adds up CPUs and GPUs by the second."""

    def __init__(self, section: SweepSection, *, before: SpentRecord, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._section = section
        self._before = before
        self._began = clock()
        self._reserved: dict[int, tuple[float, float]] = {}
        """CPUs and GPUs of each trial that was drawn and has not ended."""
        self._handed_out: dict[int, float] = {}
        self._since: dict[int, float] = {}
        """Since when each of them really runs: its process may wait for room."""
        self._durations: deque[float] = deque(maxlen=_DURATIONS)
        self._cpu_s = self._gpu_s = 0.0
        """Of trials that run no more."""

    @property
    def busy(self) -> int:
        """Return how many trials were handed out and have not ended."""
        return len(self._handed_out)

    @property
    def waiters(self) -> list[Waiter]:
        """Return the trials that were handed out and have no process yet."""
        return [
            Waiter(number, since_s, *self._reserved.get(number, (0.0, 0.0)))
            for number, since_s in self._handed_out.items()
            if number not in self._since
        ]

    @property
    def short(self) -> bool:
        """Return whether trials last so little that drawing one is a good part of it."""
        return bool(self._durations) and median(self._durations) <= SHORT_S

    @property
    def here_s(self) -> float:
        """Return the seconds since the sweep began or was resumed."""
        return self.clock() - self._began

    @property
    def spent(self) -> SpentRecord:
        """Return what the sweep took so far, over all its resumes."""
        now, cpu_s, gpu_s = self.clock(), self._cpu_s, self._gpu_s
        for number, since in self._since.items():
            cpus, gpus = self._reserved[number]
            cpu_s, gpu_s = cpu_s + cpus * (now - since), gpu_s + gpus * (now - since)
        return budget.spent(self._before, wall_s=now - self._began, cpu_s=cpu_s, gpu_s=gpu_s, section=self._section)

    def reserves(self, number: int, *, cpus: float, gpus: float) -> None:
        """Note what a trial takes while it runs."""
        self._reserved[number] = (cpus, gpus)

    def hand_out(self, number: int) -> None:
        """Note that a trial is on its way to a process."""
        self._handed_out[number] = self.clock()

    def start(self, number: int) -> None:
        """Note that a trial has the process that it waited for."""
        if number in self._reserved:
            self._since[number] = self.clock()

    def end(self, number: int) -> None:
        """Note that a trial runs no more."""
        now = self.clock()
        if (handed_out := self._handed_out.pop(number, None)) is not None:
            self._durations.append(now - handed_out)
        cpus, gpus = self._reserved.pop(number, (0.0, 0.0))
        if (since := self._since.pop(number, None)) is not None:
            self._cpu_s += cpus * (now - since)
            self._gpu_s += gpus * (now - since)
