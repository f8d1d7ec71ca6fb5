"""What profiles cost: python tests/benchmarks/drift_scan.py [--rows 1000000 10000000] [--peers PYTHON]

Prints, each in a process of its own, cells a CPU second (what else runs on the machine changes little in it) and peak
memory of counting ROWS rows of 20 columns (15 of numbers, 5 of text) on the layout of a reference of 100,000 rows: from
arrays with Python strings, as a recipe has them, and from
Arrow, as the log has them, also without the scores from which correlations are told. Then the size of a bundle's
references of 20, 200 and 2,000 columns, and the time in which a week of hours of 20 and 200 columns is read, added up
and judged.

PYTHON is the interpreter of an environment with evidently or whylogs, which are not installed beside raymlops:
evidently runs its data drift preset at the first number of rows against 100,000, whylogs profiles the DataFrame.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import reduce
from operator import add

COLUMNS, TEXTS, REFERENCE = 20, 5, 100_000
CHUNK = 1_000_000


def table(rows: int, *, seed: int) -> dict:
    """Return columns of numbers and text; equal ones in every process."""
    import numpy as np

    rng = np.random.default_rng(seed)
    names = np.array([f"value {n}" for n in range(40)], dtype=object)
    numbers = {f"n{n}": rng.normal(size=rows) for n in range(COLUMNS - TEXTS)}
    return numbers | {f"t{n}": names[rng.zipf(1.5, rows) % 40] for n in range(TEXTS)}


def count(rows: int, *, arrow: bool, scores: bool = True) -> dict[str, float]:
    """Count rows on the layout of a reference, a million at a time."""
    import pyarrow as pa

    from raymlops.profiles.count import Counter
    from raymlops.profiles.learn import Learner

    learner = Learner()
    reference = table(REFERENCE, seed=0)
    learner.add(reference, rows=REFERENCE)
    counter = Counter(learner.layout(scored=reference if scores else ()))
    columns: dict = table(min(rows, CHUNK), seed=1)
    if arrow:
        columns = {name: pa.array(values) for name, values in columns.items()}
    began = time.process_time()
    for start in range(0, rows, CHUNK):
        counter.add(columns, rows=min(CHUNK, rows - start))
    return {"seconds": time.process_time() - began}


def evidently(rows: int) -> dict[str, float]:
    """Compare rows with a reference by evidently's data drift preset."""
    import pandas as pd
    from evidently import Report
    from evidently.presets import DataDriftPreset

    reference, current = pd.DataFrame(table(REFERENCE, seed=0)), pd.DataFrame(table(rows, seed=1))
    began = time.process_time()
    Report([DataDriftPreset()]).run(current, reference).dict()
    return {"seconds": time.process_time() - began}


def whylogs(rows: int) -> dict[str, float]:
    """Profile rows with whylogs."""
    import pandas as pd
    import whylogs as why

    current = pd.DataFrame(table(rows, seed=1))
    began = time.process_time()
    why.log(current).view()
    return {"seconds": time.process_time() - began}


PHASES = {
    "raymlops, arrays": lambda rows: count(rows, arrow=False),
    "raymlops, Arrow": lambda rows: count(rows, arrow=True),
    "  without scores": lambda rows: count(rows, arrow=True, scores=False),
    "evidently": evidently,
    "whylogs": whylogs,
}


def in_process(python: str, phase: str, rows: int) -> dict[str, float] | None:
    """Run one phase in a process of its own; return its seconds and peak memory, None where it is not installed."""
    command = [python, __file__, "--phase", phase, "--rows", str(rows)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"{phase}: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def say_speed(rows: list[int], peers: list[str]) -> None:
    """Print a line for each phase and number of rows."""
    runs = [(sys.executable, "raymlops, arrays", n) for n in rows] + [
        (sys.executable, phase, n) for phase in ("raymlops, Arrow", "  without scores") for n in rows
    ]
    for python in peers:
        runs += [(python, peer, rows[0]) for peer in ("evidently", "whylogs")]
    ours: dict[str, float] = {}
    for python, phase, number in runs:
        got = in_process(python, phase, number)
        if got is None:
            continue
        speed = number * COLUMNS / got["seconds"]
        if python == sys.executable:
            ours.setdefault(phase, speed)
        times = ", ".join(f"{one / speed:,.0f}" for one in ours.values())
        ratio = "" if python == sys.executable else f"  raymlops has {times} times that"
        print(
            f"{phase:18} {number:11,} rows {speed:14,.0f} cells/CPU s  peak {got['peak_mb']:6,.0f} MB{ratio}",
            flush=True,
        )


def say_sizes() -> None:
    """Print the size of references and the time of a week's hours."""
    from datetime import UTC, datetime, timedelta

    import numpy as np

    from raymlops.monitor.drift import judge
    from raymlops.monitor.own_windows import by_rows
    from raymlops.monitor.profiled import column_counts
    from raymlops.predictions.hourly import hourly_profiles
    from raymlops.predictions.partition import PROFILE
    from raymlops.predictions.paths import prediction_folder
    from raymlops.profiles.count import profile_of
    from raymlops.profiles.file import write_profiles, write_references
    from raymlops.profiles.reference import Chunk, reference_of
    from raymlops.storage.store import Store

    rows = 50_000
    rng = np.random.default_rng(0)
    for columns in (20, 200, 2000):
        values = {f"n{n}": rng.normal(size=rows) for n in range(min(columns, 50))}
        data = {f"n{n}": values[f"n{n % 50}"] for n in range(columns)}
        began = time.perf_counter()
        found = reference_of(lambda data=data: [Chunk(data, rows)], rows=rows, row_order="ordered", scored=[*data])
        made = time.perf_counter() - began
        size = len(write_references({"features": found})) / 1e6
        series, blocks = found.layout.series[0], len(found.blocks)
        print(
            f"{columns:5} columns: {blocks} blocks of {len(series.edges) - 1} bins, {size:.1f} MB, made in {made:.1f} s"
        )
        if columns > 200:
            continue
        layout = found.layout
        hour = profile_of({name: column[:5000] for name, column in data.items()}, layout)
        file = write_profiles([("features", hour)], about={"files": {}})
        with tempfile.TemporaryDirectory() as folder:
            store, start = Store(folder), datetime(2026, 1, 5, tzinfo=UTC)
            import pyarrow as pa

            for number in range(168):
                at = start + timedelta(hours=number)
                store.write(f"{prediction_folder('m', 1, int(at.timestamp()) // 3600)}/{PROFILE}", pa.py_buffer(file))
            began, busy = time.perf_counter(), time.process_time()
            hours = hourly_profiles(store, "m", {"features": layout})
            total = reduce(add, (each.profiles["features"] for each in hours))
            added = time.perf_counter() - began
            columns_of, _ = column_counts(found.blocks, [hour, hour])
            judge(columns_of, by_rows(found.blocks.rows, rows=1000))
            took, cpu = time.perf_counter() - began, time.process_time() - busy
        assert total.rows == 168 * 5000
        week = f"a week of hours of {len(file) / 1e3:.0f} kB each added up in {added:.2f} s"
        print(
            f"{columns:5} columns: {week}, {took:.2f} s with the verdict on a window of 50 own ones ({cpu:.2f} CPU s)"
        )


def main() -> None:
    """Print everything, or run one phase."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--peers", nargs="*", default=[], metavar="PYTHON")
    parser.add_argument("--phase", choices=PHASES)
    options = parser.parse_args()
    if options.phase:
        got = PHASES[options.phase](options.rows[0])
        got["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(got))
        return
    say_speed(options.rows, options.peers)
    say_sizes()


if __name__ == "__main__":
    main()
