"""Two sweeps that both want the whole cluster, each a job of its own: they share it, and both end with their trials."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
import second_sweep
from ray.util import placement_group_table
from sweep_driver import write

from raymlops.config.load import load_data
from raymlops.project import bind
from raymlops.tuning.execution.slots import COUNT_EVERY_S
from raymlops.tuning.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration

SLOTS, FIRST, SECOND = 4, 12, 8
"""Two CPUs, half a one for each trial."""
WITHIN_S = 60.0


class Groups:
    """How many slots each of the two jobs holds and waits for, by Ray's table of placement groups."""

    def __init__(self) -> None:
        job_id = ray.get_runtime_context().get_job_id()
        rows = [row for row in placement_group_table().values() if row["state"] != "REMOVED"]
        found = Counter((row["placement_group_id"].endswith(job_id), row["state"] == "CREATED") for row in rows)
        self.held = (found[True, True], found[False, True])
        self.waits = (found[True, False] > 0, found[False, False] > 0)

    def too_many(self) -> bool:
        """Return whether one holds more than half plus one while the other waits."""
        return any(held > SLOTS // 2 + 1 and waits for held, waits in zip(self.held, reversed(self.waits), strict=True))


def until(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_second_sweep_gets_the_next_slot_and_its_half_and_both_end(tmp_path: Path, storage_path: Path, ray_local):
    """The first one has all four slots. Once it has seen that another waits, the first of its trials to end makes room.

    From then on neither holds more than half plus one while the other waits.
    """

    def data(name: str, trials: int, tickets: Path) -> dict[str, Any]:
        return {
            "project": {"name": name},
            "recipe": {"import": "slow_sweep:Held", "config": {"tickets": str(tickets)}},
            "train": {"epochs": 1, "batch_size": 64, "threads_per_worker": 1, "cpus_per_worker": 0.5},
            "sweep": {
                "num_trials": trials,
                "sampler": "random",
                "scheduler": "none",
                "space": {"train.lr": {"float": [1e-3, 1e-1]}},
            },
            "storage": {"path": str(storage_path)},
            "cluster": {"address": ray_local.address},
        }

    tickets, go = tmp_path / "tickets", tmp_path / "go"
    tickets.mkdir()
    file = write(tmp_path / "second.yaml", data("second", SECOND, tickets))
    env = {**os.environ, "PYTHONPATH": str(Path(second_sweep.__file__).parent)}
    second = subprocess.Popen(
        [sys.executable, second_sweep.__file__, str(file), str(go)], env=env, stdout=subprocess.PIPE, text=True
    )
    seen: list[Groups] = []

    def direct() -> None:
        try:
            until(lambda: Groups().held == (SLOTS, 0))
            go.touch()
            until(lambda: Groups().waits[1])
            time.sleep(2.5 * COUNT_EVERY_S)  # two counts in a row must agree, and nothing else says that they do
            assert Groups().held == (SLOTS, 0)
            (tickets / "ticket-1").touch()
            until(lambda: Groups().held != (SLOTS, 0) and sum(Groups().held) == SLOTS)
            seen.append(Groups())
        finally:
            (tickets / "open").touch()
        while second.poll() is None:
            seen.append(Groups())
            time.sleep(0.05)

    try:
        with ThreadPoolExecutor(1) as background:
            directed = background.submit(direct)
            record = sweep(bind(load_data(data("first", FIRST, tickets))))
            directed.result()
        out, _ = second.communicate(timeout=WITHIN_S)
    finally:
        second.kill()
    assert second.returncode == 0
    assert Counter(trial.status for trial in record.trials) == {"complete": FIRST}
    assert out.split() == ["complete"] * SECOND
    assert seen[0].held == (SLOTS - 1, 1)
    assert not [groups.held for groups in seen if groups.too_many()]
