"""Accounting of a sweep: reserved resources, ended trials, and whether a budget is used up.

Pure: the clock is an argument. Of several objectives the first decides which trial is the best so far; the winner is
chosen by ``selection``.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Self

from raymlops.records import SpentRecord
from raymlops.tuning.stalls import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from raymlops.config.sweep import SweepSection
    from raymlops.records import TrialRecord


@dataclass
class Tally:
    """Counts trials as they end."""

    mode: str
    best: TrialRecord | None = None
    """Of the complete trials that keep the constraints."""
    since_best: int = 0
    """The sweep's own trials that have ended since, without failed ones."""
    ended: int = 0
    """The sweep's own trials."""

    @classmethod
    def of(cls, records: Iterable[TrialRecord], *, mode: str) -> Self:
        """Return the tally of trials in the order in which they ended."""
        tally = cls(mode)
        for record in records:
            tally.take(record)
        return tally

    def take(self, record: TrialRecord) -> bool:
        """Count a trial that ended; return whether it is the best so far."""
        own = not record.carried_from
        self.ended += own
        if record.status == "failed":
            return False
        self.since_best += own
        if record.status != "complete" or record.value is None or not record.feasible:
            return False
        sign = 1.0 if self.mode == "min" else -1.0
        if self.best is not None and self.best.value is not None and sign * self.best.value <= sign * record.value:
            return False
        self.best, self.since_best = record, 0
        return True


def spent(before: SpentRecord, *, wall_s: float, cpu_s: float, gpu_s: float, section: SweepSection) -> SpentRecord:
    """Return the resources that a sweep has used, over all its resumes.

    ``before`` is the usage when it was resumed, ``wall_s`` the seconds since then, ``cpu_s`` and ``gpu_s`` the CPU and
    GPU seconds that its trials have reserved since. A repeated trial counts again.
    """
    cpu_hours, gpu_hours = before.cpu_hours + cpu_s / 3600, before.gpu_hours + gpu_s / 3600
    price = section.price
    return SpentRecord(
        wall_s=before.wall_s + wall_s,
        cpu_hours=cpu_hours,
        gpu_hours=gpu_hours,
        cost=cpu_hours * price.cpu_hour + gpu_hours * price.gpu_hour,
        currency=price.currency,
    )


def used_up(section: SweepSection, so_far: SpentRecord) -> str:
    """Return which budget is used up, in words; empty where none is."""
    limits = (
        ("timeout_s", section.timeout_s, so_far.wall_s, "s"),
        ("max_cpu_hours", section.max_cpu_hours, so_far.cpu_hours, "CPU-hours"),
        ("max_gpu_hours", section.max_gpu_hours, so_far.gpu_hours, "GPU-hours"),
        ("max_cost", section.max_cost, so_far.cost, so_far.currency),
    )
    for field, limit, taken, unit in limits:
        if limit is not None and taken >= limit:
            return f"reached its {field} of {limit:g} {unit}"
    return ""


def good_enough(section: SweepSection, tally: Tally) -> str:
    """Return why no more trials are needed, in words; empty where more are."""
    best, target = None if tally.best is None else tally.best.value, section.target
    if best is None:
        return ""
    if target is not None and (best <= target if tally.mode == "min" else best >= target):
        return f"reached its target of {target:g} with {best:.5g}"
    if section.patience is not None and tally.since_best >= section.patience:
        return f"found nothing better in {tally.since_best} trials (patience {section.patience})"
    return ""


def words(so_far: SpentRecord) -> str:
    """Format the resources used: ``0:01:05, 0.04 CPU-hours, 0.02 EUR``."""
    minutes, seconds = divmod(math.floor(so_far.wall_s), 60)
    parts = [f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}", f"{so_far.cpu_hours:.3g} CPU-hours"]
    if so_far.gpu_hours:
        parts.append(f"{so_far.gpu_hours:.3g} GPU-hours")
    if so_far.cost:
        parts.append(f"{so_far.cost:.4g} {so_far.currency}")
    return ", ".join(parts)


SHORT_S = 2.0
_DURATIONS = 20


class Meter:
    """Measures the CPU and GPU seconds that trials reserve."""

    def __init__(self, section: SweepSection, *, before: SpentRecord, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._section = section
        self._before = before
        self._began = clock()
        self._reserved: dict[int, tuple[float, float]] = {}
        """CPUs and GPUs of each trial that is drawn and has not ended."""
        self._handed_out: dict[int, float] = {}
        self._since: dict[int, float] = {}
        """When each of them got its process, which may wait for resources."""
        self._durations: deque[float] = deque(maxlen=_DURATIONS)
        self._cpu_s = self._gpu_s = 0.0
        """Of trials that no longer run."""

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
        """Return whether trials are so short that drawing one takes a large part of their time."""
        return bool(self._durations) and median(self._durations) <= SHORT_S

    @property
    def here_s(self) -> float:
        """Return the seconds since the sweep was started or resumed."""
        return self.clock() - self._began

    @property
    def spent(self) -> SpentRecord:
        """Return the resources used so far, over all resumes."""
        now, cpu_s, gpu_s = self.clock(), self._cpu_s, self._gpu_s
        for number, since in self._since.items():
            cpus, gpus = self._reserved[number]
            cpu_s, gpu_s = cpu_s + cpus * (now - since), gpu_s + gpus * (now - since)
        return spent(self._before, wall_s=now - self._began, cpu_s=cpu_s, gpu_s=gpu_s, section=self._section)

    def reserves(self, number: int, *, cpus: float, gpus: float) -> None:
        """Record the reservation of a trial."""
        self._reserved[number] = (cpus, gpus)

    def hand_out(self, number: int) -> None:
        """Record that a trial was handed out."""
        self._handed_out[number] = self.clock()

    def start(self, number: int) -> None:
        """Record that a trial has its process."""
        if number in self._reserved:
            self._since[number] = self.clock()

    def end(self, number: int) -> None:
        """Record that a trial no longer runs."""
        now = self.clock()
        if (handed_out := self._handed_out.pop(number, None)) is not None:
            self._durations.append(now - handed_out)
        cpus, gpus = self._reserved.pop(number, (0.0, 0.0))
        if (since := self._since.pop(number, None)) is not None:
            self._cpu_s += cpus * (now - since)
            self._gpu_s += gpus * (now - since)
