"""Where files are: paths, folders, globs and URIs of any filesystem that pyarrow knows.

Owns what a name stands for. Knows nothing of what is in a file.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from raymlops.config.credentials import holds_credential
from raymlops.config.paths import local_path
from raymlops.errors import RecipeError, StorageError

SUFFIXES = (".parquet", ".pq")
GO_ON = "A run that this stopped goes on from its last checkpoint: raymlops train --resume RUN_ID."


def find_files(text: str) -> list[tuple[str, Any]]:
    """Return the URI and file info of each file that a path, folder, glob or URI names.

    Those of a folder or glob come in the order of their paths. A name that starts with ``_`` or ``.`` is passed over.

    Raises:
        RecipeError: nothing is there, or the URI holds a secret.
        StorageError: the storage does not answer.
    """
    import pyarrow as pa
    from pyarrow import fs

    _refuse_secret(text)
    local = local_path(text)
    address, _, query = (str(local), "", "") if local is not None else text.partition("?")
    literal = local is not None and local.exists()
    base, pattern = (address, "") if literal else _cut(address, wild="*" if local is None else "*?[")
    suffix = f"?{query}" if query else ""
    try:
        filesystem, path = located(base + suffix)
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.File and not pattern:
            return [(base + suffix, info)]
        inside = [] if info.type == fs.FileType.NotFound else _files_below(filesystem, path)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(text, error) from error
    matches = re.compile(_regex(pattern) if pattern else r".*").fullmatch
    files = [
        (f"{base.rstrip('/')}/{name if local is not None else quote(name, safe='/=')}{suffix}", entry)
        for name, entry in inside
        if matches(name) and (pattern or name.endswith(SUFFIXES))
    ]
    if not files:
        there = "is not there" if info.type == fs.FileType.NotFound else f"holds no file ending in {SUFFIXES[0]}"
        raise RecipeError(
            f"datasets() names {text!r}, which {'matches no file' if pattern else there}",
            hint="A relative path is looked for from the working directory, of each worker too.",
        )
    return files


def located(uri: str) -> tuple[Any, str]:
    """Return the ``pyarrow.fs`` filesystem of a file or folder, and its path there."""
    from pyarrow import fs

    local = local_path(uri)
    if local is not None:
        return fs.LocalFileSystem(), str(local)
    address, _, query = uri.partition("?")
    folder, _, name = address.rstrip("/").rpartition("/")
    if folder.endswith("/") or not name:  # the bucket itself
        filesystem, path = _filesystem(uri)
        return filesystem, path
    filesystem, path = _filesystem(folder + (f"?{query}" if query else ""))
    return filesystem, f"{path.rstrip('/')}/{unquote(name)}"


def unreadable(place: str, error: Exception) -> StorageError:
    """Return the error for what is there and cannot be read."""
    return StorageError(f"{place} cannot be read: {error}", hint=f"Restore or repair the file. {GO_ON}")


def _files_below(filesystem: Any, path: str) -> list[tuple[str, Any]]:
    """Return each file's path below a folder, and its info, in the order of paths; hidden ones are passed over."""
    from pyarrow import fs

    entries = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    named = [(entry.path[len(path.rstrip("/")) + 1 :], entry) for entry in entries if entry.is_file]
    hidden = re.compile(r"(?:.*/)?[_.].*")
    return sorted((pair for pair in named if not hidden.fullmatch(pair[0])), key=lambda pair: pair[0])


def _cut(address: str, *, wild: str) -> tuple[str, str]:
    """Cut an address before its first part with a wildcard."""
    parts = address.split("/")
    for index, part in enumerate(parts):
        if any(character in part for character in wild):
            return "/".join(parts[:index]) or "/", "/".join(parts[index:])
    return address, ""


def _regex(pattern: str) -> str:
    """Return the regular expression of a glob; ``**`` stands for any number of folders."""
    text = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", pattern):
        known = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
        text += known.get(part) or (part.replace("[!", "[^") if part.startswith("[") else re.escape(part))
    return text


@lru_cache(maxsize=256)
def _filesystem(uri: str) -> tuple[Any, str]:
    """Return the filesystem of a folder. Kept, because a bucket's region is asked for over the network."""
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, str(path)


def _refuse_secret(uri: str) -> None:
    """The list of files is written down with the run, and a secret has no place there."""
    if holds_credential(uri):
        raise RecipeError(
            "datasets() names a URI that holds a credential",
            hint="Give it by environment variables, such as AWS_ACCESS_KEY_ID, or by the machine's role.",
        )
