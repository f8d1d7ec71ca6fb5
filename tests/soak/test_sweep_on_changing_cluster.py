"""A sweep on a cluster that grows from a head without CPUs, loses a node and gets it back: as wide as there is room."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import ray
from own_cluster import own_cluster

from raymlops.cluster import resource_usage
from raymlops.config.load import load_data
from raymlops.project import bind
from raymlops.tuning.sweep import sweep

if TYPE_CHECKING:
    from pathlib import Path

    from raymlops.tuning.reporting.progress import SweepEvent

pytestmark = pytest.mark.soak
CPUS, PHASE_S, SETTLE_S = 2, 45.0, 10.0
TRIALS = 120
LEAST = 0.9


@dataclass
class Watch:
    """Changes the cluster, and samples how many trials have a process and how many there is room for."""

    cluster: Any
    running: int = 0
    samples: list[tuple[str, float, int, float, float]] = field(default_factory=list)
    """Phase, seconds since it began, trials that run, CPUs that the sweep has reserved, CPUs of the living nodes."""

    def on_event(self, event: SweepEvent) -> None:
        self.running = event.counts["running"] if event.kind != "message" else self.running

    def change(self) -> None:
        self._sample("no node", 5.0)
        first = self.cluster.add_node(num_cpus=CPUS)
        self._sample("one node", PHASE_S)
        self.cluster.add_node(num_cpus=CPUS)
        self._sample("two nodes", PHASE_S)
        self.cluster.remove_node(first, allow_graceful=False)
        while self._cpus() > CPUS:  # nobody can know before Ray's health check has missed its heartbeats
            time.sleep(0.25)
        self._sample("one was lost", PHASE_S)
        self.cluster.add_node(num_cpus=CPUS)
        self._sample("it is back", PHASE_S)

    def _sample(self, phase: str, for_s: float) -> None:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < for_s:
            cpus = self._cpus()
            usable = resource_usage.usable()
            own = sum(amounts.get("CPU", 0.0) for node, amounts in usable.own.items() if node in usable.free)
            self.samples.append((phase, passed, self.running, own, cpus))
            time.sleep(0.25)

    def _cpus(self) -> float:
        return sum(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])

    def shares(self, phase: str) -> tuple[float, float]:
        """Return the slots with a running trial, and those held, over all, from ten seconds after the change.

        The difference is the hand-over from one trial to the next, which a busy machine prolongs.
        """
        settled = [sample[2:] for sample in self.samples if sample[0] == phase and sample[1] >= SETTLE_S]
        running, own, cpus = (sum(part) for part in zip(*settled, strict=True))
        return round(running / cpus, 3), round(own / cpus, 3)


def test_a_sweep_is_as_wide_as_its_cluster(tmp_path: Path) -> None:
    project = bind(
        load_data(
            {
                "project": {"name": "wide"},
                "recipe": {"import": "slow_sweep:Paced", "config": {"epoch_s": 1.0}},
                "train": {"epochs": 5, "batch_size": 64, "threads_per_worker": 1},
                "sweep": {
                    "num_trials": TRIALS,
                    "sampler": "random",
                    "scheduler": "none",
                    "space": {"recipe.config.x": {"float": [0.0, 1.0]}},
                },
                "storage": {"path": str(tmp_path / "storage")},
            }
        )
    )
    with own_cluster(head_cpus=0, nodes=0, cpus_per_node=CPUS) as (cluster, _):
        watch = Watch(cluster)
        # Ray adds nodes from the main thread only.
        with ThreadPoolExecutor(1) as background:
            swept = background.submit(sweep, project, on_event=watch.on_event)
            watch.change()
            record = swept.result(timeout=120)
    phases = ("one node", "two nodes", "one was lost", "it is back")
    shares = {phase: watch.shares(phase) for phase in phases}
    print(shares, Counter(trial.status for trial in record.trials))
    assert Counter(trial.status for trial in record.trials) == {"complete": TRIALS}
    assert min(held for _, held in shares.values()) >= LEAST, shares
