"""How a version of a Delta table is named: ``s3://bucket/table@v3/split=train``. Touches no file.

``@v3`` and ``@2026-11-27T12:00`` are Delta's own notation for a version and for what was current at a time. Folders
such as ``split=train`` after it choose partitions. ``delta+`` in front says that it is a table where nothing else does
yet. A table's own folder may be named so too: where ``table@v3`` is a table itself, that is meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from raymlops.config.durations import read_moment
from raymlops.config.paths import local_path
from raymlops.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "delta+"
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""How a folder says that its partition's value is missing."""
_AS_OF = re.compile(r"(.+)@(v\d+|\d{4}-?\d\d-?\d\d[^/@]*)")
_FOLDER = re.compile(r"(.+)/([^/=]+)=([^/]*)")


@dataclass(frozen=True)
class TableName:
    """A table, or some of its partitions, at a version, at a time, or as it is."""

    uri: str
    """Of the table: a path or a URI, with its query."""
    version: int | None = None
    at: datetime | None = None
    partitions: tuple[tuple[str, str | None], ...] = ()
    """Columns and the value that each has in all rows."""
    explicit: bool = False
    """Whether the name itself says that it is a table."""

    def __str__(self) -> str:
        as_of = "" if self.at is None else f"@{self.at:%Y-%m-%dT%H:%M:%S.%fZ}"
        as_of = as_of if self.version is None else f"@v{self.version}"
        folders = "".join(
            f"/{quote(column, safe='')}={NO_VALUE if value is None else quote(value, safe='')}"
            for column, value in self.partitions
        )
        address, mark, query = _cut(self.uri)
        return f"{address}{as_of}{folders}{mark}{query}"

    @property
    def whole(self) -> bool:
        """Return whether it is a table as it is, which alone can be written."""
        return self.version is None and self.at is None and not self.partitions

    def with_version(self, version: int) -> TableName:
        """Return the name of these rows at a version."""
        return replace(self, version=version, at=None)


def parse(text: str) -> TableName:
    """Read a name whose table is in a folder without a version or a partition; whether it is one is not known.

    Raises:
        UsageError: it names a time that is none.
    """
    *_, found = readings(text)
    return found.read()


@dataclass(frozen=True)
class Reading:
    """What a text may name: a table, at the time that ``at`` says, whose form is not checked yet."""

    name: TableName
    text: str
    at: str = ""

    def read(self) -> TableName:
        """Return the name.

        Raises:
            UsageError: the time is none.
        """
        return replace(self.name, at=_moment(self.at, self.text)) if self.at else self.name


def readings(text: str) -> Iterator[Reading]:
    """Yield what a text may name, the longest folder first: a table may be in one that is named ``t@v2`` or ``k=v``."""
    explicit, text = text.startswith(PREFIX), text.removeprefix(PREFIX)
    address, mark, query = _cut(text)
    table, partitions = address.rstrip("/") or address[:1], tuple[tuple[str, str | None], ...]()
    if not table:
        raise UsageError("a Delta table needs a path or a URI", hint="Such as delta+s3://bucket/table.")
    while True:
        yield Reading(TableName(f"{table}{mark}{query}", partitions=partitions, explicit=explicit), text)
        if (match := _AS_OF.fullmatch(table)) is not None:
            found = TableName(f"{match[1]}{mark}{query}", partitions=partitions, explicit=explicit)
            is_version = match[2].startswith("v")
            yield Reading(found.with_version(int(match[2][1:])), text) if is_version else Reading(found, text, match[2])
        if (match := _FOLDER.fullmatch(table)) is None:
            return
        value = None if match[3] == NO_VALUE else unquote(match[3])
        table, partitions = match[1].rstrip("/"), ((unquote(match[2]), value), *partitions)


def _cut(text: str) -> tuple[str, str, str]:
    """Return a URI without its query, and that; a path has none."""
    return (text, "", "") if local_path(text) is not None else text.partition("?")


def _moment(text: str, name: str) -> datetime:
    """Return a time in ISO 8601, UTC without an offset, or Delta's own 17 digits."""
    try:
        if text.isdigit() and len(text) == len("yyyyMMddHHmmssSSS"):
            return datetime.strptime(text, "%Y%m%d%H%M%S%f").replace(tzinfo=UTC)
        return read_moment(text)
    except ValueError as error:
        raise UsageError(
            f"{name!r} names a table as of {text!r}, which is no time",
            hint="Write @v3 for a version, or a time in ISO 8601 such as @2026-11-27T12:00Z.",
        ) from error
