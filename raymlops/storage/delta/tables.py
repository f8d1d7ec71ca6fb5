"""Open a Delta table: which text names one, by deltalake, with the storage that pyarrow would use.

Owns what becomes of deltalake's errors. Knows nothing of files or rows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sys
from bisect import bisect_right
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from raymlops.config.credentials import redact
from raymlops.config.paths import local_path
from raymlops.errors import StorageError, UsageError
from raymlops.storage import filesystem
from raymlops.storage.delta.names import PREFIX, TableName, readings

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG = "_delta_log"
_log = logging.getLogger(__name__)

_COMMIT = re.compile(r"(\d{20})\.json")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def find_table(text: str) -> TableName | None:
    """Return the Delta table that a path or URI names, by ``delta+`` or because there is one; None if it names none.

    Raises:
        UsageError: it names a time that is none.
        StorageError: the storage does not answer.
    """
    there = False
    for number, found in enumerate(readings(text)):
        try:
            there = has_table(found.name.uri)
        except StorageError as error:
            if found.name.explicit or not number or not _is_denied(error):
                raise
            _log.warning("whether %s is a part of a Delta table cannot be told: %s", redact(text), error.message)
            break
        if there:
            break
    if not (there or found.name.explicit):
        return None
    name = found.read()
    return replace(name, uri=filesystem.absolute(name.uri))


def name_of(source: Any) -> Any:
    """Return the name of the version that a ``deltalake.DeltaTable`` is at; anything else as it is."""
    module = sys.modules.get("deltalake")
    if module is None or not isinstance(source, module.DeltaTable):
        return source
    return f"{PREFIX}{TableName(source.table_uri.rstrip('/'), version=source.version())}"


def load(name: TableName) -> Any:
    """Return the table as deltalake has it, at the named version.

    Raises:
        UsageError: there is no such table or version, or deltalake is not installed.
        StorageError: the storage does not answer, or its log is damaged.
    """
    found = load_if_there(name)
    if found is None:
        raise UsageError(f"there is no Delta table at {redact(name.uri)!r}", hint="A table has a folder _delta_log.")
    return found


def load_if_there(name: TableName) -> Any | None:
    """Return the table as ``load`` does, or None where there is none.

    Raises:
        UsageError: there is no such version, or deltalake is not installed.
        StorageError: the storage does not answer, or its log is damaged.
    """
    module = library()
    if not has_table(name.uri):
        return None
    if name.at is not None and name.version is None:
        name = name.with_version(_version_as_of(name))
    with errors(name.uri):
        options = storage_options(name.uri)
        if name.version is not None:
            try:
                return module.DeltaTable(address(name.uri), version=name.version, storage_options=options)
            except module.exceptions.DeltaError as error:
                raise _no_version(name, newest=load(replace(name, version=None)).version(), error=error) from error
        return module.DeltaTable(address(name.uri), storage_options=options)


def has_table(uri: str) -> bool:
    """Return whether a path or URI has a table's log.

    Raises:
        StorageError: the storage does not answer.
    """
    return bool(filesystem.info(filesystem.join(uri, LOG)).type.name == "Directory")


def table_above(uri: str) -> str | None:
    """Return the table that a folder is, or is below; None where it is in none, or what is above may not be looked at.

    Raises:
        StorageError: the storage does not answer.
    """
    base, mark, query = (str(path.resolve()), "", "") if (path := local_path(uri)) is not None else uri.partition("?")
    parts = base.split("/")
    for end in range(len(parts), 1 if path is not None else 2, -1):
        table = "/".join(parts[:end]) + mark + query
        try:
            if has_table(table):
                return table
        except StorageError as error:
            if end == len(parts) or not _is_denied(error):
                raise
            return None
    return None


def _is_denied(error: StorageError) -> bool:
    """Return whether a storage answers that this may not be looked at: who may read one folder may not see others."""
    cause = error.__cause__
    return (
        isinstance(cause, PermissionError) or re.search(r"(?i)access_?denied|forbidden|\b403\b", str(cause)) is not None
    )


def library() -> Any:
    """Return deltalake.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import deltalake
        import deltalake.exceptions
    except ImportError as error:
        raise UsageError(
            "Delta tables need deltalake, which is not installed", hint="pip install 'raymlops[delta]'"
        ) from error
    return deltalake


@contextlib.contextmanager
def errors(uri: str) -> Iterator[None]:
    """Turn what deltalake raises into a StorageError that names the table."""
    import pyarrow as pa

    try:
        yield
    except (library().exceptions.DeltaError, OSError, pa.ArrowException) as error:
        raise StorageError(
            f"the Delta table {redact(uri)!r} cannot be used: {redact(str(error))}",
            hint="deltalake takes credentials and endpoints from the environment, as AWS_ACCESS_KEY_ID and "
            "AWS_ENDPOINT_URL.",
        ) from error


def address(uri: str) -> str:
    """Return a table's path or URI as deltalake takes it."""
    return uri if local_path(uri) is not None else uri.partition("?")[0]


def storage_options(uri: str) -> dict[str, str]:
    """Return what deltalake is told of S3 beside the environment, so that it asks whom pyarrow asks."""
    if not uri.startswith("s3://"):
        return {}
    query = {name: values[-1] for name, values in parse_qs(uri.partition("?")[2]).items()}
    endpoint = query.get("endpoint_override") or next(
        (os.environ[name] for name in _ENDPOINTS if name in os.environ), ""
    )
    if endpoint and "://" not in endpoint:
        endpoint = f"{query.get('scheme', 'https')}://{endpoint}"
    found = {"AWS_REGION": query["region"]} if "region" in query else {}
    if endpoint:
        found |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}
    return found


def _version_as_of(name: TableName) -> int:
    """Return the version that was current at a time, as in Spark.

    A table may have times in its commits, which stay when it is copied; of others it is when the files were written.

    Raises:
        UsageError: the log is younger, or the time has not come.
        StorageError: a commit cannot be read.
    """
    log = filesystem.entries(filesystem.join(name.uri, LOG))
    written = {int(match[1]): info.mtime for file, info in log.items() if (match := _COMMIT.fullmatch(file))}
    since, now = _own_times_since(name), datetime.now(UTC)
    own = sorted(version for version in written if version >= since)

    def committed(version: int) -> datetime:
        return _own_time(name, version) if version >= since else written[version]

    assert name.at is not None
    before = own[: bisect_right(own, name.at, key=committed)]
    before = before or [version for version, at in written.items() if version < since and at <= name.at]
    if not before or name.at > now:
        first = committed(min(written)) if written else now
        raise UsageError(
            f"the Delta table {redact(name.uri)!r} has no version of {name.at:%Y-%m-%d %H:%M:%S} UTC: its log begins "
            f"at {first:%Y-%m-%d %H:%M:%S} UTC, and a time to come could change what is read",
            hint="Name a time between, or a version: @v3.",
        )
    return max(before)


def _own_times_since(name: TableName) -> float:
    """Return the first version whose commit says its time itself."""
    with errors(name.uri):
        known = load(TableName(name.uri)).metadata().configuration
    enabled = known.get("delta.enableInCommitTimestamps", "false").lower() == "true"
    return int(known.get("delta.inCommitTimestampEnablementVersion", 0)) if enabled else math.inf


def _own_time(name: TableName, version: int) -> datetime:
    commit = filesystem.join(name.uri, LOG, f"{version:020d}.json")
    try:
        first = json.loads(filesystem.read_bytes(commit).partition(b"\n")[0])  # where the protocol has it
        return datetime.fromtimestamp(first["commitInfo"]["inCommitTimestamp"] / 1000, UTC)
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{redact(commit)} does not begin with the time of its commit", hint="Name a version: @v3."
        ) from error


def _no_version(name: TableName, *, newest: int, error: Exception) -> UsageError:
    table = f"the Delta table {redact(name.uri)!r}"
    assert name.version is not None
    if name.version > newest:
        return UsageError(f"{table} has no version {name.version}: its newest is {newest}")
    return UsageError(
        f"version {name.version} of {table} can no longer be read, since its log was cleaned up: {redact(str(error))}",
        hint=f"Name a later version, up to {newest}; delta.logRetentionDuration says how long versions are kept.",
    )
