"""What ``storage.path`` names: a folder of this machine, or a place on some other filesystem.

Reads the text alone and touches no file. Everybody who needs to know asks here, so that ``~``, ``file://`` and a
plain path mean the same in every room.
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
