"""What a step, a start, a restart and a checkpoint cost beside plain ``torchrun`` DDP, in one run, taking turns.

Same model, rows, batch and optimizer, two processes of one thread on gloo. The peer logs to its standard output and, in
the restart, writes checkpoints with ``torch.save``; ``train`` also writes MLflow runs and asynchronous checkpoints with
digests in all of them. A step's time is taken between the first and the last log of a run, so that start-up is apart.

    python tests/benchmarks/train_overhead.py [ROUNDS]
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "fixtures"))

import psutil
import torch
from local_training import MemorySaver
from wide import network

from raymlops.cluster.capacity import Places
from raymlops.cluster.connect import connect
from raymlops.cluster.placement import WorkerRequest
from raymlops.config.load import load_data
from raymlops.config.train import TrainSection
from raymlops.data.prepare import prepare
from raymlops.project import bind
from raymlops.training.checkpoints.saver import FolderSaver, Snapshot
from raymlops.training.checkpoints.state import RunState
from raymlops.training.inprocess import run_in_process
from raymlops.training.loop.outcome import Hooks
from raymlops.training.run import train as run_training

HERE = Path(__file__).parent
STEPS, LOG_EVERY, CHECKPOINT_EVERY = 400, 20, 100
RESTART_STEPS = 1200
ALONE_STEPS = 3000


def project(folder, *, steps=STEPS, log_every=LOG_EVERY):
    return bind(
        load_data(
            {
                "project": {"name": "overhead"},
                "recipe": {"import": "wide:Wide", "config": {"rows": 512 * steps}},
                "train": {
                    "epochs": 1,
                    "batch_size": 512,
                    "num_workers": 2,
                    "threads_per_worker": 1,
                    "log_every_steps": log_every,
                    "checkpoint_every_steps": CHECKPOINT_EVERY,
                },
                "storage": {"path": str(folder)},
                "cluster": {"address": "local", "num_cpus": 2.0},
            }
        )
    )


def train(made, on_event):
    room = Places(WorkerRequest(1, 1.0, purpose="train.num_workers"))
    return run_training(made, on_event=on_event, room=room)


def ours(folder):
    """Return milliseconds a step, and seconds from the call to the first log."""
    times = {}
    began = time.time()
    train(
        project(folder),
        on_event=lambda event: event.kind == "step" and times.setdefault(event.step, event.timestamp_ms / 1000),
    )
    return (times[STEPS] - times[LOG_EVERY]) / (STEPS - LOG_EVERY) * 1000, times[LOG_EVERY] - began


class Peer:
    """One run of torchrun; ``times`` are its logs."""

    def __init__(self, folder, *, steps=STEPS, log_every=LOG_EVERY, checkpoint_every=0, restarts=0):
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", restarts]
        command += [HERE / "train_overhead_peer.py", steps, log_every, checkpoint_every, folder]
        self.began = time.time()
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=sys.stderr if os.environ.get("DEBUG_PEER") else subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.times, self.pids, self.ended = {}, {}, False

    def lines(self):
        """Read until the end, and yield each new step."""
        for line in self.process.stdout:
            kind, number, value, *_ = line.split()
            if kind == "pid":
                self.pids[int(number)] = int(value)
            elif int(number) not in self.times:
                self.times[int(number)] = float(value)
                yield int(number)
        if self.process.wait() and not self.ended:
            sys.exit(f"the peer ended with {self.process.returncode}")

    def end(self):
        """End it and its ranks."""
        self.ended = True
        with suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                process.kill()
        self.process.wait()


def peer(folder):
    run = Peer(folder)
    list(run.lines())
    return (run.times[STEPS] - run.times[LOG_EVERY]) / (STEPS - LOG_EVERY) * 1000, run.times[LOG_EVERY] - run.began


def ours_restart(folder):
    """Return the seconds from kill -9 of a worker to the first step that was new."""
    killed, back = [], []

    def watch(event):
        if event.kind != "step":
            return
        if event.step >= 250 and not killed:
            workers = [child for child in psutil.Process().children(recursive=True) if "TrainWorker" in child.name()]
            killed.append((time.time(), event.step))
            workers[-1].send_signal(signal.SIGKILL)
        elif killed and not back and event.step > killed[0][1] + 1 and event.timestamp_ms / 1000 > killed[0][0] + 1:
            back.append(event.timestamp_ms / 1000)

    train(project(folder, steps=RESTART_STEPS, log_every=1), on_event=watch)
    return back[0] - killed[0][0]


def peer_restart(folder):
    """Return its seconds; None where it has not come back within a minute, as gloo sometimes does not."""
    folder.mkdir()
    run = Peer(folder, steps=RESTART_STEPS, log_every=1, checkpoint_every=CHECKPOINT_EVERY, restarts=3)
    late = threading.Timer(60, run.end)
    late.start()
    try:
        return seconds_of_restart(run)
    finally:
        late.cancel()
        run.end()


def seconds_of_restart(run):
    killed = None
    for step in run.lines():
        if step >= 250 and killed is None:
            killed = (time.time(), step)
            os.kill(run.pids[1], signal.SIGKILL)
        elif killed and step > killed[1] + 1 and run.times[step] > killed[0] + 1:
            return run.times[step] - killed[0]
    return None


def stalls(folder):
    """Return milliseconds that a step waits for a checkpoint of 20 million parameters: ours, and a synchronous save."""
    model = network(4400)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, 64)).sum().backward()
    optimizer.step()
    saver = FolderSaver(
        TrainSection(keep_checkpoints=1, metric="loss", on_checkpoint_error="stop"),
        str(folder / "ours"),
        token="bench",
        identity={},
    )
    waited, synchronous = [], []
    for step in range(1, 4):
        snapshot = Snapshot(RunState(step=step), {}, model, optimizer, {})
        began = time.perf_counter()
        saver.save(snapshot, best=False, last=False)
        waited.append((time.perf_counter() - began) * 1000)
        saver.wait()
        began = time.perf_counter()
        with (folder / "plain.pt").open("wb") as file:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        synchronous.append((time.perf_counter() - began) * 1000)
    return statistics.median(waited), statistics.median(synchronous)


def in_one_process(folder):
    """Return milliseconds a step of a small model: a plain loop over the same batches, and the default loop."""
    made = bind(
        load_data(
            {
                "project": {"name": "overhead"},
                "recipe": {"import": "wide:Wide", "config": {"rows": 64 * ALONE_STEPS, "hidden": 16}},
                "train": {"epochs": 1, "batch_size": 64, "threads_per_worker": 1},
                "storage": {"path": str(folder)},
            }
        )
    )
    prepared = prepare(made)
    split, recipe = prepared.splits["train"], prepared.recipe
    torch.set_num_threads(1)
    model = recipe.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=made.spec.train.lr, weight_decay=0.0)
    indices = list(split.global_batches(batch_size=64, seed=0, epoch=1))
    began = time.perf_counter()
    for rows in indices:
        optimizer.zero_grad()
        loss = recipe.loss(model, split.batch(rows))
        loss.backward()
        optimizer.step()
    plain = time.perf_counter() - began
    marks = []
    hooks = Hooks(heartbeat=lambda _step: marks.append(time.perf_counter()))
    run_in_process(made, prepared, saver=MemorySaver(), hooks=hooks)
    # From the first step's end to the last one's: the validation's heartbeats come after.
    return plain / ALONE_STEPS * 1000, (marks[ALONE_STEPS - 1] - marks[0]) / (ALONE_STEPS - 1) * 1000


def ratios(what, pairs):
    """Return the medians of pairs of seconds and of their ratios, with the smallest and the largest ratio, as text."""
    mine, theirs = (statistics.median(pair[index] for pair in pairs) for index in (0, 1))
    each = sorted(one / other for one, other in pairs)
    return (
        f"{what}: {mine:.1f} s : {theirs:.1f} s, median of {len(each)} ratios {statistics.median(each):.2f} "
        f"({each[0]:.2f} to {each[-1]:.2f})"
    )


def main(rounds):
    with tempfile.TemporaryDirectory() as name, connect(project(name).spec):
        folder = Path(name)
        pairs = []
        for number in range(rounds):
            pairs.append((*ours(folder / "ours"), *peer(folder)))
            mine, my_start, theirs, their_start = pairs[-1]
            print(
                f"round {number + 1}: step {mine:.2f} ms : {theirs:.2f} ms = {mine / theirs:.3f}; "
                f"start to step {LOG_EVERY} {my_start:.1f} s : {their_start:.1f} s",
                flush=True,
            )
        print(f"step, median of ratios: {statistics.median(pair[0] / pair[2] for pair in pairs):.3f}")
        print(ratios(f"start to step {LOG_EVERY}", [(pair[1], pair[3]) for pair in pairs]))
        pairs = [(ours_restart(folder / "ours"), peer_restart(folder / f"peer-{number}")) for number in range(rounds)]
        print(ratios("kill -9 of a worker to the next new step", [pair for pair in pairs if pair[1] is not None]))
        pairs = [in_one_process(folder / "alone") for _ in range(5)]
        plain, mine = (statistics.median(pair[index] for pair in pairs) for index in (0, 1))
        more = statistics.median(pair[1] - pair[0] for pair in pairs)
        print(f"a step of a small model in one process: {mine:.3f} ms : {plain:.3f} ms, {more:.3f} ms more")
        mine, theirs = stalls(folder)
        print(f"step waits for a checkpoint of 20 M parameters: {mine:.0f} ms : {theirs:.0f} ms = {mine / theirs:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
