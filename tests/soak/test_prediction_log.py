"""A writer of the prediction log killed again and again, and a million rows through every step in flat memory."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raymlops.predictions.read import Reading

pytestmark = pytest.mark.soak

TESTS = Path(__file__).parents[1]
KILLS = 20
FLUSH_S, PERIOD_S = 0.5, 0.25
MARGIN_S = 1.0
"""For a busy machine, on which a thread wakes late, and a last write that was the slowest."""


def answered_until_killed(uri, seconds):
    """Return when each request was answered, by number, the slowest write so far, and when the writer was killed."""
    command = [sys.executable, str(TESTS / "fixtures/served_requests.py"), uri, str(FLUSH_S), str(PERIOD_S)]
    said = Path(f"{uri}.said")
    with said.open("w") as out, subprocess.Popen(command, stdout=out) as writer:
        while not said.stat().st_size:
            assert writer.poll() is None
            time.sleep(0.01)
        time.sleep(seconds)
        killed_at = time.time()
        writer.kill()
    whole = [json.loads(line) for line in said.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return {str(number): at for number, at, _ in whole}, max(slowest for _, _, slowest in whole), killed_at


def test_a_kill_loses_at_most_what_was_promised(tmp_path):
    """The newest rows alone: those of flush_s, the recorder's period and the write in progress. No file is damaged."""
    rng = random.Random(0)
    worst = 0.0
    for kill in range(KILLS):
        uri = str(tmp_path / f"kill-{kill}")
        answered, slowest_s, killed_at = answered_until_killed(uri, 2 + rng.random())
        reading = Reading(uri, "flights")
        kept = [value for batch in reading for value in batch["request_id"].to_pylist()]
        assert reading.damaged == ()
        assert len(kept) == len(set(kept))
        lost = sorted(answered.keys() - set(kept), key=int)
        assert lost == sorted(answered, key=int)[len(answered) - len(lost) :], f"kill {kill}: not the newest"
        age_s = killed_at - answered[lost[0]] if lost else 0.0
        bound_s = FLUSH_S + PERIOD_S + slowest_s
        worst = max(worst, age_s)
        assert age_s < bound_s + MARGIN_S
        print(
            f"kill {kill:2}: {len(lost):4} of {len(answered):4} rows lost, the oldest {age_s:.3f} s old; "
            f"flush and period {FLUSH_S + PERIOD_S:.2f} s, slowest write {slowest_s:.3f} s, sum {bound_s:.3f} s"
        )
    print(f"{KILLS} kills: the oldest row lost was {worst:.3f} s old")


def test_a_million_rows_take_no_more_memory_than_a_hundred_thousand(tmp_path):
    """Written, compacted and read back, each step in a process of its own."""
    peaks = {}
    for rows in (100_000, 1_000_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        for phase in ("write", "compact", "read", "newest", "export"):
            command = [sys.executable, str(TESTS / "benchmarks/prediction_log.py"), phase, str(folder), str(rows)]
            got = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            peaks[phase, rows] = got["peak_mb"]
            print(f"{rows:9,} rows, {phase:8} {got['seconds']:6.1f} s, peak {got['peak_mb']:.0f} MB")
        files = list(folder.rglob("predictions/**/*.parquet"))
        assert sum(pq.read_metadata(file).num_rows for file in files) == rows
        assert len(files) == 4  # of four hours
    for phase in ("write", "compact", "read", "newest", "export"):
        assert peaks[phase, 1_000_000] < peaks[phase, 100_000] + 64, phase
