"""Find the Parquet files that a path, folder, glob or URI names. Knows nothing of what is in a file.

Files of a Delta table are none of these: they hold rows that were deleted, and those of all versions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from raymlops.config.credentials import holds_credential
from raymlops.config.paths import local_path
from raymlops.errors import RecipeError, StorageError, UsageError
from raymlops.storage import filesystem
from raymlops.storage.delta.names import NO_VALUE
from raymlops.storage.delta.tables import LOG, table_above

SUFFIXES = (".parquet", ".pq")
RESUME = "Then resume a run that this stopped from its last checkpoint: raymlops train --resume RUN_ID."
_HIDDEN = re.compile(r"(?:.*/)?(?:\.|_(?![^/=]+=)).*")
"""As in Spark: files and folders that begin with ``_`` or ``.``, but for partitions by a column of such a name."""
_TABLE = re.compile(rf"(?:(.+)/)?{LOG}(?:/.*)?")


@dataclass(frozen=True)
class Found:
    """A file, with pyarrow's ``FileInfo``, and what the folders directly above it say."""

    uri: str
    info: Any
    partition: tuple[tuple[str, str | None], ...] = ()
    """Of folders ``column=value``, as Spark names those of a partition, outermost first."""


def find_files(text: str) -> list[Found]:
    """Return the files that a path, folder, glob or URI names.

    Those of a folder or glob come in the order of their paths. Names that start with ``_`` or ``.`` are skipped.

    Raises:
        RecipeError: no file matches, or the URI holds a secret.
        UsageError: one is of a Delta table.
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
            _refuse_table(text, base + suffix, table_above((base.rpartition("/")[0] or "/") + suffix))
            return [Found(base + suffix, info, _partition(base, local=local is not None))]
        inside = filesystem.entries(base + suffix, recursive=True)
        table = table_above(base + suffix) if inside else None
    except StorageError as error:
        raise unreadable(text, error.__cause__ or error) from error

    def at(name: str) -> str:
        return f"{base.rstrip('/')}/{name if local is not None else quote(name, safe='/=')}{suffix}"

    matches = re.compile(_regex(pattern) if pattern else r".*").fullmatch
    files = {
        name: Found(at(name), entry, _partition(f"{base}/{name}", local=local is not None))
        for name, entry in inside.items()
        if entry.is_file and not _HIDDEN.fullmatch(name) and matches(name) and (pattern or name.endswith(SUFFIXES))
    }
    tables = {match[1] for match in map(_TABLE.fullmatch, inside) if match and match[1]}
    for name, file in files.items():
        own = next((each for each in tables if name.startswith(f"{each}/")), None)
        _refuse_table(text, file.uri, at(own) if own else table)
    if not files:
        there = "does not exist" if info.type.name == "NotFound" else f"holds no file ending in {SUFFIXES[0]}"
        raise RecipeError(
            f"datasets() names {text!r}, which {'matches no file' if pattern else there}",
            hint="A relative path is resolved in the working directory, of each worker too.",
        )
    return list(files.values())


def _refuse_table(text: str, file: str, table: str | None) -> None:
    if table is not None:
        raise UsageError(
            f"{text!r} names {file}, a file of the Delta table {table}, which may hold rows that were deleted",
            hint="Name the table alone, or as TABLE@v3 for a version, and TABLE/column=value for a partition.",
        )


def _partition(path: str, *, local: bool) -> tuple[tuple[str, str | None], ...]:
    """Return what the folders ``column=value`` directly above a file say, whichever of them was named."""
    folders = (str(Path(path).absolute()) if local else path).split("/")[-2::-1]
    pairs = [folder.split("=", 1) for folder in takewhile(lambda folder: folder.find("=") > 0, folders)]
    return tuple((unquote(column), None if value == NO_VALUE else unquote(value)) for column, value in reversed(pairs))


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
