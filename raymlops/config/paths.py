"""What ``storage.path`` and SQLite URLs name: a folder or file of this machine, or another filesystem.

Reads the text alone and touches no file, so that ``~``, ``file://`` and a plain path mean the same in every package.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from raymlops.errors import ConfigError, Problem

STATE_URL, STATE_FILE = "RAYMLOPS_STATE_URL", "RAYMLOPS_STATE_FILE"
"""Variables, where no configuration names the state: its SQL URL, or a file whose first line that is."""
CONFIG_DIGEST = "RAYMLOPS_CONFIG_DIGEST"
"""Variable of a job on Kubernetes: the digest of the configuration that it was made of."""
_SQLITE = "sqlite:///"


def local_path(uri: str | os.PathLike[str]) -> Path | None:
    """Return the absolute form of a path (``~`` is expanded) or ``file:`` URI; None for any other URI."""
    text = os.fspath(uri)
    if text.startswith("file:"):
        rest = text.removeprefix("file:").removeprefix("//")
        rest = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
        return Path(unquote(rest)).expanduser().absolute()
    if "://" in text:
        return None
    return Path(text).expanduser().absolute()


def sqlite_url(file: Path) -> str:
    """Return the SQL URL of a SQLite file, whatever characters its path has (Jenkins' workspaces hold ``%2F``)."""
    return _SQLITE + str(file).replace("%", "%25").replace("?", "%3F")


def sqlite_under(storage_path: str, name: str, *, instead: str, hint: str) -> str:
    """Return the SQL URL of a SQLite file under ``storage.path``.

    Raises:
        ConfigError: that is a URI, which holds no such file; the field ``instead`` is to be set.
    """
    folder = local_path(storage_path)
    if folder is None:
        message = f"is required, because storage.path is {storage_path!r}, which cannot hold SQLite files"
        raise ConfigError([Problem(instead, message)], hint=hint)
    return sqlite_url(folder / name)


def sqlite_path(url: str) -> Path | None:
    """Return the file that a SQLite URL names; None for any other database, and for one in memory."""
    scheme, found, rest = url.partition(":///")
    name = rest.partition("?")[0]
    if not found or scheme.partition("+")[0] != "sqlite" or name in {"", ":memory:"} or name.startswith("file:"):
        return None
    return Path(unquote(name))
