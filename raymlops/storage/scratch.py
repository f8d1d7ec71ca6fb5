"""Folders on this machine's disk for files on their way to an object store or from one.

Owns their names, and that those which killed processes left behind are removed. Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMED = "raymlops-scratch-"


def scratch_path() -> Path:
    """Return a name on this machine's disk that is free."""
    return Path(tempfile.gettempdir()) / f"{_NAMED}{uuid.uuid4().hex}"


@contextlib.contextmanager
def scratch(folder: Path | None = None) -> Iterator[Path]:
    """Make a folder at a ``scratch_path``, remove it afterwards, and those that killed processes left behind.

    A lock tells who lives: the kernel drops it with its process, in whatever container that ran. A lock's file gets its
    name when it is locked, since one that is not is taken for that of a dead process.
    """
    folder = folder or scratch_path()
    for old in folder.parent.glob(f"{_NAMED}*.lock"):
        with contextlib.suppress(OSError), old.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old.with_suffix(""), ignore_errors=True)
            old.unlink()
    lock, unlocked = folder.with_suffix(".lock"), folder.with_suffix(".new")
    with unlocked.open("xb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            unlocked.rename(lock)
            folder.mkdir(mode=0o700, exist_ok=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            unlocked.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
