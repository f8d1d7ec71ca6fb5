"""How often verdicts on quality are wrong, simulated: intervals, bounds at 500 looks, base rates that move.

The package's own intervals, bounds and evidence; labelled requests are drawn (`tests/fixtures/quality_worlds.py`), with
fixed seeds. Bounds of counted shares are those of Clopper and Pearson, one-sided, at 95%.

    python tests/benchmarks/quality_simulation.py [--runs N] [--part intervals|looks|lives|found|labels|days|all]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "fixtures"))

import numpy as np
import quality_days as days_differ
import quality_rates as rates
from quality_worlds import COUNTED, LATE, MODELS, WORLDS, log, squared

CLUSTERS = (40, 100, 200)


def intervals(runs: int) -> None:
    """Print how often an interval at 95% holds the truth."""
    runs *= 5  # of 2,000 runs one share in seven would be off by half a point and more
    print(f"\nIntervals at 95%, looked at once, {runs} runs: share that holds the truth, by clusters")
    print("(as many of unlike size or weight as are worth so many of one)")
    print(f"{'':44} " + " ".join(f"{count:>8}" for count in CLUSTERS))
    for world in (*WORLDS, COUNTED):
        shares = [rates.covered(world, clusters=count, runs=runs) for count in CLUSTERS]
        print(f"{world.name:44} " + " ".join(f"{share:8.2%}" for share in shares), flush=True)
    runs //= 5
    print(f"\nLikewise, {runs} runs")
    for loss in (squared, log):
        shares = [rates.lost_covered(loss, rows=count, runs=runs) for count in CLUSTERS]
        name = f"skill lost since promotion, {loss.__name__}"
        print(f"{name:44} " + " ".join(f"{share:8.2%}" for share in shares), flush=True)
    shares = [rates.auc_covered(clusters=count, rows=5, runs=runs) for count in CLUSTERS]
    print(f"{'5 rows, AUC by pseudo-values':44} " + " ".join(f"{share:8.2%}" for share in shares), flush=True)


def looks(runs: int) -> None:
    """Print how often bounds that always hold ever miss, and equally good models are called worse."""
    print(f"\n500 looks, {runs} runs: bounds at 95% that ever miss, and the bound of that share, by clusters a look")
    for world in LATE:
        for a_look in (1, 20):
            missed = rates.missed(world, a_look=a_look, runs=runs)
            told(f"{world.name}, {a_look} a look", missed, runs)
    print("\nTwo equally good models on the same requests, 500 looks: ever called worse (allowed: 1%)")
    for world in MODELS:
        for a_look in (1, 20):
            told(f"{world.name}, {a_look} a look", rates.called_worse(world, a_look=a_look, runs=runs), runs)


def lives(runs: int) -> None:
    """Print how often a model that is as it was is ever called worse, and how often by other comparisons."""
    for name, life, every in rates.UNCHANGED:
        print(f"\n{name}. {life.windows} windows of {life.rows} requests: ever called worse (allowed: 1%)")
        for way, words in rates.WAYS.items():
            count = runs if way == "labels" else max(1, runs // 10)
            for margin, first in rates.whole_life(life, way=way, runs=count, every=every).items():
                told(f"{words}, margin {margin:g}", int((first > 0).sum()), count)


def found(runs: int) -> None:
    """Print when a model that became worse is found."""
    print(f"\nWorse from the 31st of 60 windows of 200 on, margin 0.01, {runs} runs: found, after how many (median)")
    for name, life in rates.CHANGED:
        skill = life.skill_lost(np.random.default_rng(rates.SEED), at=rates.CALM)
        first = rates.whole_life(life, margins=(0.01,), runs=runs, every=1)[0.01]
        late = first[first > rates.CALM] - rates.CALM
        early = int(((first > 0) & (first <= rates.CALM)).sum())
        when = f"{np.median(late):.0f}" if len(late) else "-"
        share = len(late) / runs
        print(f"{name:48} {skill:6.3f} of skill lost: {share:7.1%} {when:>5}   before it: {early}", flush=True)


def days(runs: int) -> None:
    """Print how often models that are as they were are called worse where days differ, and when others are found."""
    runs = max(1, runs // 5)
    print(f"\nDays differ; 90 windows, {runs} lives: ever called worse (allowed: 1%)")
    for life in days_differ.UNCHANGED:
        told(life.name, sum(life.first_worse(seed) is not None for seed in range(runs)), runs)
    runs = max(1, runs // 4)
    print(f"\nWorse from some window on, {runs} lives: found, after how many windows (median), and called so before it")
    for life in days_differ.CHANGED:
        first = np.array([math.inf if (at := life.first_worse(seed)) is None else at for seed in range(runs)])
        late = first[(first >= life.change) & (first < math.inf)] - life.change + 1
        when = f"{np.median(late):.0f}" if len(late) else "-"
        print(f"{life.name:60} {len(late) / runs:7.1%} {when:>5} {int((first < life.change).sum()):5}", flush=True)


def labels(runs: int) -> None:
    """Print how often labelled requests count as unlike unlabelled ones."""
    print("\nLabelled against unlabelled requests of the same age, 150 each of 1 to 9 rows: no verdict in")
    for apart in (0.0, 0.2, 0.5, 0.7):
        count = runs if not apart else max(1, runs // 10)
        share = rates.told_apart(apart, runs=count)
        print(f"{apart:.1f} standard deviations apart {share:8.2%}", flush=True)


def told(name: str, events: int, runs: int) -> None:
    print(f"{name:52} {events / runs:7.2%}  at most {rates.upper(events, runs):6.2%}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument(
        "--part", choices=("intervals", "looks", "lives", "found", "labels", "days", "all"), default="all"
    )
    given = parser.parse_args()
    started = time.perf_counter()
    for part, show in (
        ("intervals", intervals),
        ("looks", looks),
        ("lives", lives),
        ("found", found),
        ("labels", labels),
        ("days", days),
    ):
        if given.part in (part, "all"):
            show(given.runs if part != "found" else max(1, given.runs // 10))
    print(f"\n{time.perf_counter() - started:.0f} s")
