"""How much memory a replica's process uses, and its bound.

The bound is ``serve.memory_gb``, held without control groups: the peak is compared after each batch of the warm-up, and
what is resident at each health check. ``setrlimit`` would bound addresses, of which CUDA and thread pools reserve many
times what they use. Of a GPU, torch's allocator keeps to the reserved share of the card.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.errors import InsufficientResourcesError

if TYPE_CHECKING:
    from collections.abc import Callable

GB = 1_000_000_000


def used_bytes() -> int:
    """Return the memory of this process that is resident now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Return the most memory of this process that was ever resident.

    On Linux from its own books, as ``getrusage`` counts what the process was before it became this program.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def gpu_peak_bytes() -> int | None:
    """Return the most memory of the GPU that torch ever held in this process; None without one."""
    import torch

    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return int(torch.cuda.max_memory_reserved()) if used else None


def keep_to_share(share: float) -> None:
    """Bound torch's allocator to the share of a GPU that the replica reserves, 0 to 1; above 1 they are whole cards."""
    import torch

    if 0 < share < 1:
        torch.cuda.set_per_process_memory_fraction(share)


def require_within(bound: int | None, *, used: Callable[[], int] = used_bytes, when: str) -> None:
    """Check that the process keeps to its bound; None is no bound.

    Raises:
        InsufficientResourcesError: it uses more.
    """
    if bound is not None and (found := used()) > bound:
        raise InsufficientResourcesError(
            f"a replica uses {found / GB:.2f} GB of memory {when}, and serve.memory_gb is {bound / GB:g}",
            hint="Raise serve.memory_gb, or lower serve.max_batch_rows and serve.max_batch_elements.",
        )
