"""How busy the machine of this process is: processor, memory, disk, network and the accelerator's memory.

Owns the names, which are those of MLflow's own system metrics where they mean the same, so that its page of them shows
these. Cheap, but not for every step. In a container the figures of processor and memory are the whole machine's.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from raymlops.config.paths import local_path

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_S = 10.0
"""Seconds between samples that are worth a point."""
_GB = 1e9
_MB = 1e6


class SystemMetrics:
    """Samples the machine of this process; rates are those since the sample before, or since this was made.

    ``storage_uri`` names the disk to look at, where it is one of this machine.
    """

    def __init__(self, storage_uri: str | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        import psutil

        self._psutil: Any = psutil
        self._clock = clock
        self._folder = None if storage_uri is None else local_path(storage_uri)
        self._process = psutil.Process()
        psutil.cpu_percent()  # the first call has nothing to compare with, and answers 0
        self._network = self._network_bytes()
        self._at_s = clock()

    def sample(self) -> dict[str, float]:
        """Return ``system/...`` metrics: percentages from 0 to 100, GB and MB per second in powers of ten."""
        found = {
            "system/cpu_utilization_percentage": float(self._psutil.cpu_percent()),
            "system/system_memory_usage_percentage": float(self._psutil.virtual_memory().percent),
            "system/process_memory_gb": self._process.memory_info().rss / _GB,
        }
        if (used := self._disk()) is not None:
            found["system/disk_usage_percentage"] = used
        network, now_s = self._network_bytes(), self._clock()
        if network is not None and self._network is not None and now_s > self._at_s:
            # Counters go back where an interface goes.
            received, sent = (max(0, after - before) for after, before in zip(network, self._network, strict=True))
            found["system/network_receive_mb_per_s"] = received / _MB / (now_s - self._at_s)
            found["system/network_transmit_mb_per_s"] = sent / _MB / (now_s - self._at_s)
        self._network, self._at_s = network, now_s
        return found | _accelerator()

    def _disk(self) -> float | None:
        if self._folder is None:
            return None
        # The folder of a run that is about to begin may not be there yet; its disk is.
        there = next((folder for folder in (self._folder, *self._folder.parents) if folder.exists()), None)
        return None if there is None else float(self._psutil.disk_usage(str(there)).percent)

    def _network_bytes(self) -> tuple[int, int] | None:
        """Return the bytes received and sent so far; None where the machine does not say."""
        try:
            counters = self._psutil.net_io_counters()
        except OSError:
            return None
        return None if counters is None else (int(counters.bytes_recv), int(counters.bytes_sent))


def _accelerator() -> dict[str, float]:
    """Return what this process' tensors hold of its GPU; nothing where torch is not loaded or uses none."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "system/gpu_memory_gb": torch.cuda.memory_allocated() / _GB,
        "system/gpu_memory_usage_percentage": 100.0 * (total - free) / total,
    }
