"""What the prediction log costs and takes: python tests/benchmarks/prediction_log.py [ROWS]

Prints the cost of a request in the thread that answers (nothing but the recorder's append) and in the log's own, how
long that keeps the interpreter from others, and, each in a process of its own, the rows/s and peak memory of writing,
compacting and reading ROWS rows (1,000,000) of 20 fields, at a tenth of them too: flat memory is that both are alike.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

from served_requests import flights

from raymlops.predictions.compact import compact
from raymlops.predictions.labels import SCHEMA
from raymlops.predictions.log import PredictionLog, pieces
from raymlops.predictions.read import Reading
from raymlops.predictions.schema import to_tables
from raymlops.predictions.settings import LogSettings
from raymlops.predictions.spool import encode

BATCH = 1000
HOURS = 4
START = datetime(2026, 11, 25, 8, tzinfo=UTC)


def main(rows: int) -> None:
    """Print everything."""
    cost_of_a_request()
    pause_of_others()
    for count in (rows // 10, rows):
        with tempfile.TemporaryDirectory() as folder:
            for phase in ("nothing", "write", "compact", "read", "newest", "export", "label", "read_labelled"):
                say(phase, in_process(phase, folder, count), count)


def in_process(phase: str, folder: str, rows: int) -> dict[str, float]:
    """Run one phase in a process of its own; return its seconds, rows and peak memory."""
    command = [sys.executable, __file__, phase, folder, str(rows)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def say(phase: str, got: dict[str, float], rows: int) -> None:
    """Print one line."""
    speed = "" if phase == "nothing" else f"{rows / got['seconds']:12,.0f} rows/s"
    print(f"{rows:9,} rows  {phase:14} peak {got['peak_mb']:6.0f} MB  {got['files']:5.0f} files {speed}", flush=True)


def cost_of_a_request() -> None:
    """Print what one row costs, in the log's thread and where it is answered."""
    signature, requests = flights(BATCH)
    best = min(worked(lambda: to_tables(requests, signature, name="flights")) for _ in range(20))
    (table,) = to_tables(requests, signature, name="flights").values()
    encoding = min(worked(lambda: encode(table)) for _ in range(20))
    print(f"to Arrow  {best / BATCH * 1e6:6.2f} us a request of one row and 20 fields, {BATCH} at a time")
    print(f"to bytes  {encoding / BATCH * 1e6:6.2f} us, {encode(table).size / BATCH:.0f} bytes a row")
    try:
        from raymlops.serving.telemetry.sink_queue import Recorder
    except ImportError:
        return
    recorder = Recorder([], period_s=0.01, max_pending=10_000_000, name="benchmark")
    one = requests[0]
    loop = 200_000
    seconds = timed(lambda: [recorder.add(one) for _ in range(loop)])
    print(f"add       {seconds / loop * 1e9:6.0f} ns where it is answered")
    recorder.close()


def pause_of_others() -> None:
    """Print how long converting keeps the interpreter: between two pieces it is given to others."""
    signature, requests = flights(BATCH)
    held = sorted(
        worked(lambda piece=piece: to_tables(piece, signature, name="flights")) for piece in list(pieces(requests)) * 20
    )
    median, longest = held[len(held) // 2], held[-1]
    print(f"pieces    keep the interpreter for {median * 1e3:.2f} ms, {longest * 1e3:.2f} ms at most of {len(held)}")


def worked(function) -> float:
    """Return the seconds of this thread's work that a call takes, whatever else the machine does."""
    start = time.thread_time()
    function()
    return time.thread_time() - start


def timed(function) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def nothing(_folder: str, _rows: int) -> None:
    """Do nothing: what the imports take."""


def write(folder: str, rows: int) -> None:
    """Log requests of one row as fast as they are taken, over some hours, a file for 5,000 rows and hour."""
    signature, requests = flights(BATCH)
    settings = LogSettings(enabled=True, uri=folder, flush_s=60, max_pending_rows=40_000)
    log = PredictionLog(settings, name="flights", signature=signature, writer="benchmark")
    for number in range(0, rows, BATCH):
        ts = START.timestamp() + 3600 * HOURS * number / rows
        log.take([one._replace(ts=ts, request_id=f"{number + i:036d}") for i, one in enumerate(requests)])
        while log.spool.pending_rows > 20_000:
            time.sleep(0.001)
    log.close()
    assert (log.spool.written, log.spool.dropped) == (rows, 0)


def read(folder: str, rows: int, **how) -> None:
    """Read every row once."""
    reading = Reading(folder, "flights", **{"labels": False} | how)
    assert sum(batch.num_rows for batch in reading) == rows
    assert not reading.damaged


def newest(folder: str, _rows: int) -> None:
    """Read the newest 100."""
    read(folder, 100, limit=100)


def read_labelled(folder: str, rows: int) -> None:
    """Read every row with its label."""
    read(folder, rows, labels=True)


def export(folder: str, _rows: int) -> None:
    """Write them all to one Parquet file."""
    from raymlops.predictions.export.files import write_file

    with tempfile.TemporaryDirectory() as out:
        write_file(Reading(folder, "flights", labels=False), f"{out}/rows.parquet")


def label(folder: str, rows: int) -> None:
    """Give every row a label, in files of 10,000."""
    import pyarrow as pa

    from raymlops.storage.store import Namer, Store

    names, store = Namer("benchmark"), Store(folder)
    for start in range(0, rows, 10_000):
        count = min(10_000, rows - start)
        ids = [f"{start + i:036d}" for i in range(count)]
        columns = [ids, [0] * count, ["1.0"] * count, [False] * count, [START] * count, *[[None] * count] * 2]
        store.write(f"labels/flights/date=2026-11-25/{names.next()}", encode(pa.table(columns, schema=SCHEMA)))


def merge(folder: str, _rows: int) -> None:
    """Compact all hours."""
    compact(folder, "flights", now=datetime(2026, 11, 27, tzinfo=UTC))


PHASES = {
    "nothing": nothing,
    "write": write,
    "compact": merge,
    "read": read,
    "newest": newest,
    "export": export,
    "label": label,
    "read_labelled": read_labelled,
}

if __name__ == "__main__":
    if len(sys.argv) == 4:
        took = timed(lambda: PHASES[sys.argv[1]](sys.argv[2], int(sys.argv[3])))
        files = sum(1 for _ in Path(sys.argv[2]).rglob("predictions/**/*.parquet"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": took, "peak_mb": peak, "files": files}))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
