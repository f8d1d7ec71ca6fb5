"""Warn of what is valid in a sweep and hardly meant. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.config.sweep import LEARNS_FROM_COMPLETE
from raymlops.tuning.search_space import count_values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.config.sweep import SweepSection


def warnings_of(sweep: SweepSection) -> Iterator[str]:
    """Yield the warnings about a sweep, each with what to do instead."""
    if sweep.sampler in LEARNS_FROM_COMPLETE and sweep.scheduler != "none":
        yield (
            f"sweep.sampler {sweep.sampler} learns from complete trials alone, of which sweep.scheduler "
            f"{sweep.scheduler} leaves few: set the scheduler to none, or use tpe, which learns from stopped trials too"
        )
    if sweep.sampler == "nsga2" and sweep.num_trials <= sweep.startup_trials:
        yield (
            f"sweep.num_trials is {sweep.num_trials}, and the first generation of nsga2 is {sweep.startup_trials} "
            "random trials (sweep.startup_trials): raise the one or lower the other"
        )
    values = {count_values(searched) for searched in sweep.space.values()}
    if values == {1} and sweep.sampler != "grid":
        yield (
            f"sweep.space has one point, so that all {sweep.num_trials} trials are the same: set wider ranges, or "
            "sampler: grid, which tries it once"
        )
    if "train.seed" in sweep.space:
        yield "train.seed is searched: the winner may have the luckiest seed, not the best configuration"
