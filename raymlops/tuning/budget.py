"""What a sweep has taken, and whether that is enough: time, CPU- and GPU-hours, money, a target, no improvement.

Pure. Knows nothing of clocks: seconds are given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from raymlops.records import SpentRecord

if TYPE_CHECKING:
    from raymlops.config.schema import SweepSection
    from raymlops.tuning.tally import Tally


def spent(before: SpentRecord, *, wall_s: float, cpu_s: float, gpu_s: float, section: SweepSection) -> SpentRecord:
    """Return what a sweep took, over all its resumes.

    ``before`` is what it had taken when it was resumed, ``wall_s`` the seconds since then, ``cpu_s`` and ``gpu_s`` the
    seconds of CPUs and GPUs that its trials have reserved since. A trial that is done again counts again.
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
    """Return why no more trials are needed, in words; empty where they are."""
    best, target = None if tally.best is None else tally.best.value, section.target
    if best is None:
        return ""
    if target is not None and (best <= target if tally.mode == "min" else best >= target):
        return f"reached its target of {target:g} with {best:.5g}"
    if section.patience is not None and tally.since_best >= section.patience:
        return f"found nothing better in {tally.since_best} trials (patience {section.patience})"
    return ""


def words(so_far: SpentRecord) -> str:
    """Return what a sweep took in a few words: ``0:01:05, 0.04 CPU-hours, 0.02 EUR``."""
    minutes, seconds = divmod(math.floor(so_far.wall_s), 60)
    parts = [f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}", f"{so_far.cpu_hours:.3g} CPU-hours"]
    if so_far.gpu_hours:
        parts.append(f"{so_far.gpu_hours:.3g} GPU-hours")
    if so_far.cost:
        parts.append(f"{so_far.cost:.4g} {so_far.currency}")
    return ", ".join(parts)
