"""Tell whether ``storage.path`` is a folder of this machine or on another filesystem.

Reads the text alone and touches no file; ``~``, ``file://`` and a plain path mean the same everywhere.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote


def local_path(storage_path: str) -> Path | None:
    """Return the absolute folder of a path (``~`` is expanded) or ``file:`` URI; None for any other URI."""
    if storage_path.startswith("file:"):
        rest = storage_path.removeprefix("file:").removeprefix("//")
        rest = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
        return Path(unquote(rest)).expanduser().absolute()
    if "://" in storage_path:
        return None
    return Path(storage_path).expanduser().absolute()
