"""Figures of this machine."""

from __future__ import annotations

import subprocess
import sys

from raymlops.training.loop.telemetry import SystemMetrics


def test_a_sample_of_this_machine() -> None:
    """Percentages are such, and this process holds some memory."""
    sample = SystemMetrics().sample()
    percentages = [value for name, value in sample.items() if name.endswith("percentage")]
    assert len(percentages) >= 2
    assert all(0 <= value <= 100 for value in percentages)
    assert 0.01 < sample["system/process_memory_gb"] < 100
    assert all(name.startswith("system/") for name in sample)


def test_rates_are_per_second() -> None:
    """What loopback carries is at least what is sent over it: nothing less than nothing, in any case."""
    now = [0.0]
    metrics = SystemMetrics(clock=lambda: now[0])
    now[0] = 2.0
    sample = metrics.sample()
    assert sample["system/network_receive_mb_per_s"] >= 0
    assert "system/network_receive_mb_per_s" not in metrics.sample()  # no time has passed


def test_looking_loads_no_torch() -> None:
    """A process without torch has no tensors on a GPU."""
    sample = "from raymlops.training.loop.telemetry import SystemMetrics; SystemMetrics().sample()"
    code = f"import sys; {sample}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
