"""What time it is for what is stored: by the machine, or in a replay by the clock of the replay.

Whatever is dated and later compared with other dates goes by it: what is live, rows and labels of the prediction log,
keys and their expiry. Waits and deadlines within a process go by the machine's monotonic clock.

A replay sends the requests of past weeks to a real endpoint within minutes. Its clock is a file with a time, which
stands still until it is set again, and which every process of its cluster finds by an environment variable. That is
set before the cluster starts, and never on a cluster with callers of its own: their requests would get its dates.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

from raymlops.errors import StorageError

FILE = "RAYMLOPS_REPLAY_CLOCK"
"""The environment variable that names the file of a replay's clock."""


def now_s() -> float:
    """Return the time in seconds since 1970.

    Raises:
        StorageError: this process is part of a replay whose clock cannot be read.
    """
    path = os.environ.get(FILE)
    return time.time() if path is None else _read(path)


def now() -> datetime:
    """Return the time in UTC.

    Raises:
        StorageError: as ``now_s``.
    """
    return datetime.fromtimestamp(now_s(), UTC)


def replayed() -> bool:
    """Return whether this process is part of a replay."""
    return FILE in os.environ


def variables() -> dict[str, str]:
    """Return what the environment of a process must have to be part of the same replay as this one, if it is."""
    return {FILE: os.environ[FILE]} if replayed() else {}


def interval_s() -> float:
    """Return seconds for measuring intervals: those of the machine, and in a replay those that its clock went on too.

    So what is due every hour is due once the clock of a replay was moved on by an hour, and what is due every five
    seconds also while that stands still.
    """
    return time.monotonic() + (now_s() if replayed() else 0.0)


def set_replay(path: str | Path, moment: datetime) -> None:
    """Set the clock of a replay; whoever reads it meanwhile gets the time before or this one."""
    file = Path(path)
    written = file.with_name(f"{file.name}.{os.getpid()}")
    written.write_text(f"{moment.timestamp():.6f}", encoding="ascii")
    written.replace(file)


def _read(path: str) -> float:
    try:
        return float(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"the clock of the replay in {path} cannot be read: {error}",
            hint=f"It is set where {FILE} is; without that variable the machine's clock counts.",
        ) from error
