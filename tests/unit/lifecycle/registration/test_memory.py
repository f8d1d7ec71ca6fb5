"""A registration and a gate hold one model, once, and a batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from deep import LAYER_BYTES

from raymlops.config.load import load_data
from raymlops.project import bind
from raymlops.training.run import train

FIXTURES = Path(__file__).parents[3] / "fixtures"
LAYERS = 16

MEASURE = """
import json
import sys
from pathlib import Path
import raymlops as rm
from raymlops.config.load import load_data
from raymlops.registry.versions import Registry
from raymlops.tracking.client import tracker

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) << 10

peaks = []
config, runs = json.loads(sys.argv[1])
spec = load_data(config).spec
for first, second in runs:
    champion = rm.register(config, first)
    Registry(tracker(spec)).set_alias("deep", "champion", champion.version)
    decision = rm.gate(config, str(rm.register(config, second).version))[1]
    assert decision.champion_version == champion.version
    peaks.append(peak_bytes())
print(peaks[1] - peaks[0])
"""


@pytest.mark.soak
def test_the_weights_are_held_once(storage_path):
    """64 MB of weights, of the candidate and of its champion alike, raise the highest resident memory by as much."""
    data = {
        "project": {"name": "deep"},
        "recipe": {"import": "deep:Deep"},
        "train": {"epochs": 1, "optimizer": "sgd", "momentum": 0.0, "eval_batch_size": 8, "threads_per_worker": 1},
        "gate": {"margin": 10.0},
        "storage": {"path": str(storage_path)},
    }
    runs = []
    for layers in (1, LAYERS):
        project = bind(load_data(data, overrides=[f"recipe.config.layers={layers}"]))
        runs.append([train(project, on_event=lambda _event: None).run_id for _ in range(2)])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps([data, runs])],
        # Or glibc would keep for itself what one verb freed, where the next one finds it or not.
        env={**os.environ, "PYTHONPATH": str(FIXTURES), "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.4 * LAYERS * LAYER_BYTES
