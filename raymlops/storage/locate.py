"""Find the files that a path, folder, glob or URI names. Knows nothing of what is in a file."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from raymlops.config.credentials import holds_credential
from raymlops.config.paths import local_path
from raymlops.errors import RecipeError, StorageError
from raymlops.storage import filesystem

SUFFIXES = (".parquet", ".pq")
RESUME = "Then resume a run that this stopped from its last checkpoint: raymlops train --resume RUN_ID."
_HIDDEN = re.compile(r"(?:.*/)?[_.].*")


def find_files(text: str) -> list[tuple[str, Any]]:
    """Return the URI and file info of each file that a path, folder, glob or URI names.

    Those of a folder or glob come in the order of their paths. Names that start with ``_`` or ``.`` are skipped.

    Raises:
        RecipeError: no file matches, or the URI holds a secret.
        StorageError: the storage does not answer.
    """
    refuse_secret(text)
    local = local_path(text)
    address, _, query = (str(local), "", "") if local is not None else text.partition("?")
    literal = local is not None and local.exists()
    base, pattern = (address, "") if literal else _cut(address, wild="*" if local is None else "*?[")
    suffix = f"?{query}" if query else ""
    try:
        info = filesystem.info(base + suffix)
        if info.is_file and not pattern:
            return [(base + suffix, info)]
        inside = filesystem.entries(base + suffix, recursive=True)
    except StorageError as error:
        raise unreadable(text, error.__cause__ or error) from error
    matches = re.compile(_regex(pattern) if pattern else r".*").fullmatch
    files = [
        (f"{base.rstrip('/')}/{name if local is not None else quote(name, safe='/=')}{suffix}", entry)
        for name, entry in inside.items()
        if entry.is_file and not _HIDDEN.fullmatch(name) and matches(name) and (pattern or name.endswith(SUFFIXES))
    ]
    if not files:
        there = "does not exist" if info.type.name == "NotFound" else f"holds no file ending in {SUFFIXES[0]}"
        raise RecipeError(
            f"datasets() names {text!r}, which {'matches no file' if pattern else there}",
            hint="A relative path is resolved in the working directory, of each worker too.",
        )
    return files


def unreadable(place: str, error: BaseException) -> StorageError:
    """Return the error for a file that exists and cannot be read."""
    return StorageError(f"{place} cannot be read: {error}", hint=f"Restore or repair the file. {RESUME}")


def _cut(address: str, *, wild: str) -> tuple[str, str]:
    """Split an address before its first part with a wildcard."""
    parts = address.split("/")
    for index, part in enumerate(parts):
        if any(character in part for character in wild):
            return "/".join(parts[:index]) or "/", "/".join(parts[index:])
    return address, ""


def _regex(pattern: str) -> str:
    """Return the regular expression of a glob; ``**`` matches any number of folders."""
    text = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", pattern):
        known = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
        text += known.get(part) or (part.replace("[!", "[^") if part.startswith("[") else re.escape(part))
    return text


def refuse_secret(uri: str) -> None:
    """Reject a secret: the list of files is logged with the run."""
    if holds_credential(uri):
        raise RecipeError(
            "datasets() names a URI that holds a credential",
            hint="Give it by environment variables, such as AWS_ACCESS_KEY_ID, or by the machine's role.",
        )
