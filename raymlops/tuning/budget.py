"""Accounting of a sweep: reserved resources, ended trials, and whether a budget is used up.

Pure: the clock is an argument. Of several objectives the first decides which trial is the best so far; the winner is
chosen by ``selection``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Self

from raymlops.display import duration
from raymlops.records import SpentRecord
from raymlops.tuning.search_space import how_many
from raymlops.tuning.stalls import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
        """Count a trial that ended; return whether it is the best so far. Repeats and imported ones are not counted."""
        if record.repeat_of is not None or record.imported:
            return False
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


def used_up(section: SweepSection, so_far: SpentRecord) -> str:
    """Return which budget is used up, in words; empty where none is."""
    return next((why for why, _ in _used_up(section, so_far)), "")


def _used_up(section: SweepSection, so_far: SpentRecord) -> Iterator[tuple[str, str]]:
    """Yield each budget that is used up, in words, with the option that extends it."""
    limits = (
        ("timeout_s", section.timeout_s, so_far.wall_s, "s"),
        ("max_cpu_hours", section.max_cpu_hours, so_far.cpu_hours, "CPU-hours"),
        ("max_gpu_hours", section.max_gpu_hours, so_far.gpu_hours, "GPU-hours"),
        ("max_cost", section.max_cost, so_far.cost, so_far.currency),
    )
    for field, limit, taken, unit in limits:
        if limit is not None and taken >= limit:
            yield f"reached its {field} of {limit:g} {unit}", f"--extend {field}=+{limit:.15g}"


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


def nothing_left(
    sweep_id: str, section: SweepSection, *, tally: Tally, refused: int, spent: SpentRecord, repeats: int = 0
) -> tuple[str, str]:
    """Return why an ended sweep has nothing left to do, and the command that continues it; empty where it has.

    ``refused`` is the number of points that the recipe rejected, ``repeats`` that of repeats which have not ended: only
    a budget keeps them from going on.
    """
    points = how_many(section)
    if not repeats and points is not None and tally.ended + refused >= points:
        command = f"raymlops sweep --fork {sweep_id} --config FILE, with a finer grid"
        return f"has tried all {points} points of its grid", command
    found = list(_used_up(section, spent))
    if not repeats and tally.ended >= section.num_trials:
        found.insert(0, (f"has ended all {tally.ended} trials", f"--extend num_trials=+{section.num_trials}"))
    if not repeats and (why := good_enough(section, tally)):
        found.append((why, "sweep.target=VALUE" if "target" in why else "sweep.patience=VALUE"))
    options = " ".join(option for _, option in found)
    return " and ".join(why for why, _ in found), f"raymlops sweep --resume {sweep_id} {options}" if found else ""


def words(so_far: SpentRecord) -> str:
    """Format the resources used: ``1:05, 0.04 CPU-hours, 0.02 EUR``."""
    parts = [duration(so_far.wall_s), f"{so_far.cpu_hours:.3g} CPU-hours"]
    if so_far.gpu_hours:
        parts.append(f"{so_far.gpu_hours:.3g} GPU-hours")
    if so_far.cost:
        parts.append(f"{so_far.cost:.4g} {so_far.currency}")
    return ", ".join(parts)


def priced(section: SweepSection, so_far: SpentRecord) -> str:
    """Return the resources used in words where they have a price; empty where they have none."""
    return words(so_far) if section.price.cpu_hour or section.price.gpu_hour else ""


SHORT_S = 2.0
_DURATIONS = 20


@dataclass(slots=True)
class _Reservation:
    """What a trial reserves, when it was handed out and when it got its process, which may wait for resources."""

    cpus: float
    gpus: float
    handed_out_s: float | None = None
    started_s: float | None = None


class Meter:
    """Measures the CPU and GPU seconds that trials reserve, over all resumes."""

    def __init__(self, section: SweepSection, *, before: SpentRecord, clock: Callable[[], float]) -> None:
        """Add to ``before``, what the sweep had used when it was resumed. A repeated trial counts again."""
        self.clock = clock
        self._section = section
        self._before = before
        self._began = clock()
        self._trials: dict[int, _Reservation] = {}
        """Trials that are drawn and have not ended."""
        self._durations: deque[float] = deque(maxlen=_DURATIONS)
        self._cpu_s = self._gpu_s = 0.0
        """Of trials that no longer run."""

    @property
    def busy(self) -> int:
        """Return how many trials were handed out and have not ended."""
        return sum(trial.handed_out_s is not None for trial in self._trials.values())

    @property
    def waiters(self) -> list[Waiter]:
        """Return the trials that were handed out and have no process yet."""
        return [
            Waiter(number, trial.handed_out_s, trial.cpus, trial.gpus, self._section.workers_per_trial)
            for number, trial in self._trials.items()
            if trial.handed_out_s is not None and trial.started_s is None
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
        """Return the resources used so far."""
        now, price = self.clock(), self._section.price
        running = [(trial, now - trial.started_s) for trial in self._trials.values() if trial.started_s is not None]
        cpu_s = self._cpu_s + sum(trial.cpus * taken_s for trial, taken_s in running)
        gpu_s = self._gpu_s + sum(trial.gpus * taken_s for trial, taken_s in running)
        cpu_hours, gpu_hours = self._before.cpu_hours + cpu_s / 3600, self._before.gpu_hours + gpu_s / 3600
        return SpentRecord(
            wall_s=self._before.wall_s + now - self._began,
            cpu_hours=cpu_hours,
            gpu_hours=gpu_hours,
            cost=cpu_hours * price.cpu_hour + gpu_hours * price.gpu_hour,
            currency=price.currency,
        )

    def reserve(self, number: int, *, cpus: float, gpus: float) -> None:
        """Record the reservation of a trial."""
        self._trials[number] = _Reservation(cpus, gpus)

    def hand_out(self, number: int) -> None:
        """Record that a trial was handed out."""
        self._trials[number].handed_out_s = self.clock()

    def withdraw(self, number: int) -> None:
        """Record that a trial without a process is not handed out any more."""
        self._trials[number].handed_out_s = None

    def start(self, number: int) -> None:
        """Record that a trial has its process."""
        if number in self._trials:
            self._trials[number].started_s = self.clock()

    def end(self, number: int) -> None:
        """Record that a trial no longer runs."""
        if (trial := self._trials.pop(number, None)) is None:
            return
        now = self.clock()
        if trial.handed_out_s is not None:
            self._durations.append(now - trial.handed_out_s)
        if trial.started_s is not None:
            self._cpu_s += trial.cpus * (now - trial.started_s)
            self._gpu_s += trial.gpus * (now - trial.started_s)
