"""Local folders for files on their way to an object store or from one; those of killed processes are removed."""

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
    """Return an unused path on the local disk."""
    return Path(tempfile.gettempdir()) / f"{_NAMED}{uuid.uuid4().hex}"


@contextlib.contextmanager
def scratch(folder: Path | None = None) -> Iterator[Path]:
    """Make a folder at a ``scratch_path`` and remove it at the end; also remove those of killed processes.

    A lock shows that the owner is alive: the kernel releases it with the process, in any container. A lock file gets
    its name once it is locked, since an unlocked one counts as that of a dead process.
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
