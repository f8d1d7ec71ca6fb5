"""The share of a busy node's CPUs that a training gets beside what answers requests.

Owns how much less that is. Knows nothing of clusters, whose nodes say how nice their workers are.
"""

from __future__ import annotations

import os

STEPS = 10
"""Of niceness: of one core, Linux gives a process ten steps below another about a tenth of what it gives that one."""


def lower_priority() -> None:
    """Let replicas and proxies on this node go first from now on; a process cannot take it back.

    Ray's reservations of CPUs bound no threads: a training that starts more than it reserved takes them from others.
    """
    os.nice(STEPS)
