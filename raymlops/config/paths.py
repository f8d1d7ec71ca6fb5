"""What ``storage.path`` and SQLite URLs name: a folder or file of this machine, or another filesystem.

Reads the text alone and touches no file, so that ``~``, ``file://`` and a plain path mean the same in every package.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

_SQLITE = "sqlite:///"


def local_path(storage_path: str) -> Path | None:
    """Return the absolute folder of a path (``~`` is expanded) or ``file:`` URI; None for any other URI."""
    if storage_path.startswith("file:"):
        rest = storage_path.removeprefix("file:").removeprefix("//")
        rest = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
        return Path(unquote(rest)).expanduser().absolute()
    if "://" in storage_path:
        return None
    return Path(storage_path).expanduser().absolute()


def sqlite_url(file: Path) -> str:
    """Return the SQL URL of a SQLite file, whatever characters its path has (Jenkins' workspaces hold ``%2F``)."""
    return _SQLITE + str(file).replace("%", "%25").replace("?", "%3F")


def sqlite_path(url: str) -> Path | None:
    """Return the file that a SQLite URL names; None for any other database, and for one in memory."""
    scheme, found, rest = url.partition(":///")
    name = rest.partition("?")[0]
    if not found or scheme.partition("+")[0] != "sqlite" or name in {"", ":memory:"} or name.startswith("file:"):
        return None
    return Path(unquote(name))
