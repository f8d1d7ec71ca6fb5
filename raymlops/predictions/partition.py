"""Read a folder of Parquet files while others write, merge and remove them.

Owns which files count: those that a ``Namer`` named, whatever else lies there. A merged file lists in its footer the
files whose rows it holds: once it is published, those no longer count, whether or not they were removed yet. Rows that
were erased meanwhile are listed there too, by their place in the file that they were written to, so that a reader that
has read half of that file continues in the right place. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from raymlops.storage.store import Store

logger = logging.getLogger(__name__)

MERGED = ".merged.parquet"
PROFILE = "profile.counts"
"""The hour's profile, beside its rows."""
BATCH_ROWS = 8192
_NAME = re.compile(r"[0-9]+-\w+(?:\.merged)?\.parquet")
_TEMPORARY = re.compile(rf"\.(?:{_NAME.pattern}|{re.escape(PROFILE)})-")
_SOURCES = b"raymlops.sources"
_ATTEMPTS = 20


Ranges = Sequence[tuple[int, int]]
"""Rows from the first number until before the second, in order."""


@dataclass(frozen=True)
class Live:
    """A file that counts. ``sources`` are the files that it was merged from, with the rows it has of each, in order."""

    name: str
    size: int
    sources: tuple[tuple[str, int], ...] = ()
    replaces: frozenset[str] = frozenset()
    erased: Mapping[str, Ranges] = field(default_factory=dict)
    """Rows that a source had and that were erased, by their place in it."""


@dataclass
class Faults:
    """Collects unreadable files, and hours whose rows cannot be counted."""

    damaged: set[str] = field(default_factory=set)
    uncounted: set[str] = field(default_factory=set)

    def add(self, path: str, error: BaseException) -> None:
        """Add a file, and log it once."""
        if path not in self.damaged:
            self.damaged.add(path)
            logger.warning("%s is damaged and skipped: %s", path, error)

    def add_uncounted(self, folder: str, error: BaseException) -> None:
        """Add an hour, and log it once."""
        if folder not in self.uncounted:
            self.uncounted.add(folder)
            logger.warning("%s cannot be counted and is skipped: %s: %s", folder, type(error).__name__, error)


class _GoneError(Exception):
    """A file was removed, or replaced by a longer one, while it was read."""


def is_temporary(name: str) -> bool:
    """Return whether a file is one that a writer has not finished, and not another program's hidden one."""
    return _TEMPORARY.match(name) is not None


def is_foreign(name: str) -> bool:
    """Return whether a file is neither of a log nor hidden."""
    return not name.startswith(".") and name != PROFILE and _NAME.fullmatch(name) is None


def sources_metadata(
    sources: Sequence[tuple[str, int]], replaces: Iterable[str], erased: Mapping[str, Ranges]
) -> dict[str, str]:
    """Return the footer metadata that lists a merged file's sources."""
    data = {"sources": list(sources), "replaces": sorted(replaces)}
    text = json.dumps(data | ({"erased": dict(erased)} if erased else {}))
    return {_SOURCES.decode(): zlib.compress(text.encode()).hex()}


def survey(store: Store, folder: str, faults: Faults) -> tuple[list[Live], list[str]]:
    """Return the files that count, in the order they were written, and those that a merged one replaced.

    Raises:
        StorageError: the storage cannot be used, or the folder changes faster than it can be listed.
    """
    for _ in range(_ATTEMPTS):
        files = _listed(store, folder)
        try:
            footers = [_footer(store, folder, name, files, faults) for name in files if name.endswith(MERGED)]
        except _GoneError:
            continue
        merged = {live.name: live for live in footers if live is not None}
        replaced = frozenset[str]().union(*(live.replaces for live in merged.values()))
        parts = {name: Live(name, size) for name, size in files.items() if not name.endswith(MERGED)}
        found = [live for name, live in sorted({**parts, **merged}.items()) if name not in replaced]
        return found, [name for name in files if name in replaced]
    raise _restless(store, folder)


def has_files(store: Store, folder: str) -> bool:
    """Return whether a folder has files of rows: a writer that was killed, or whose disk is full, leaves it without.

    Raises:
        StorageError: the storage cannot be used.
    """
    return bool(_parquet(store, folder))


def read_folder(
    store: Store, folder: str, faults: Faults, *, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield every row of a folder once, in the order of writing, at most ``BATCH_ROWS`` at a time.

    Reading continues in the merged file where a file is merged or removed meanwhile, and in the longer one where it
    grows.

    Raises:
        StorageError: the storage cannot be used.
    """
    done: dict[str, int] = {}
    for _ in range(_ATTEMPTS):
        try:
            for live in survey(store, folder, faults)[0]:
                yield from _rest(store, folder, live, done, faults=faults, columns=columns)
        except _GoneError:
            continue
        return
    raise _restless(store, folder)


def schemas_in(store: Store, folder: str, faults: Faults) -> Iterator[pa.Schema]:
    """Yield the schema of each file that counts.

    Raises:
        StorageError: the storage cannot be used.
    """
    for live in survey(store, folder, faults)[0]:
        path = f"{folder}/{live.name}"
        try:
            with open_file(store, path, size=live.size) as file:
                yield file.schema_arrow
        except FileNotFoundError:
            continue  # merged or removed since, with others of its schema
        except (OSError, pa.ArrowException) as error:
            faults.add(path, error)


def open_file(store: Store, path: str, *, size: int) -> pq.ParquetFile:
    """Open a Parquet file and verify its checksums.

    Raises:
        FileNotFoundError: it no longer exists.
        OSError, pyarrow.ArrowException: it is damaged.
        StorageError: the storage cannot be used.
    """
    return pq.ParquetFile(store.open(path, size=size), page_checksum_verification=True)


def _listed(store: Store, folder: str) -> dict[str, int]:
    """Return a folder's Parquet files.

    A listing is not atomic: it may miss both a file that was just replaced and the merged one that replaces it, which
    the next listing contains.
    """
    found = _parquet(store, folder)
    while True:
        again = _parquet(store, folder)
        if [name for name in again if name.endswith(MERGED)] == [name for name in found if name.endswith(MERGED)]:
            return found
        found = again


def _parquet(store: Store, folder: str) -> dict[str, int]:
    return {name: size for name, size in store.files(folder).items() if _NAME.fullmatch(name)}


def _footer(store: Store, folder: str, name: str, files: dict[str, int], faults: Faults) -> Live | None:
    """Return a merged file from its footer; None where it is damaged, so that its sources still count."""
    path = f"{folder}/{name}"
    try:
        with open_file(store, path, size=files[name]) as file:
            metadata = file.metadata.metadata or {}
            data = json.loads(zlib.decompress(bytes.fromhex(metadata[_SOURCES].decode())))
            sources = tuple((str(source), int(rows)) for source, rows in data["sources"])
            erased = {
                str(source): [(int(a), int(b)) for a, b in gone] for source, gone in data.get("erased", {}).items()
            }
            return Live(name, files[name], sources, frozenset(map(str, data["replaces"])), erased)
    except FileNotFoundError as error:
        raise _GoneError from error
    except (OSError, pa.ArrowException, KeyError, ValueError, zlib.error) as error:
        _blame(store, path, error, faults, size=files[name])
        return None


def _rest(
    store: Store,
    folder: str,
    live: Live,
    done: dict[str, int],
    *,
    faults: Faults,
    columns: Sequence[str] | None,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file without those of finished sources, and record what was yielded."""
    path = f"{folder}/{live.name}"
    start = 0
    try:
        with open_file(store, path, size=live.size) as file:
            sources = live.sources or ((live.name, file.metadata.num_rows),)
            fresh = not any(done.get(source) for source, _ in sources)
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                stop = start + batch.num_rows
                if fresh:
                    yield batch
                else:
                    missing = _missing(sources, live.erased, done, start, stop)
                    yield from (batch.slice(a - start, b - a) for a, b in missing)
                start = stop
    except (OSError, pa.ArrowException) as error:
        _note(live.sources or ((live.name, start),), live.erased, done, start)
        if isinstance(error, FileNotFoundError):
            raise _GoneError from error
        _blame(store, path, error, faults, size=live.size)
        return
    _note(sources, live.erased, done, start)


def left_before(place: int, erased: Ranges) -> int:
    """Return how many of the rows before a place in a source are left."""
    return place - sum(min(stop, place) - start for start, stop in erased if start < place)


def place_after(left: int, erased: Ranges) -> int:
    """Return the place in a source after so many of its rows that are left, and after erased ones that follow."""
    place = left
    for start, stop in erased:
        if start > place:
            break
        place += stop - start
    return place


def _missing(
    sources: Sequence[tuple[str, int]], erased: Mapping[str, Ranges], done: dict[str, int], start: int, stop: int
) -> Iterator[tuple[int, int]]:
    """Yield the ranges between start and stop of rows that were not yielded yet."""
    first = 0
    for source, rows in sources:
        finished = left_before(done.get(source, 0), erased.get(source, ()))
        begin, end = max(start, first + finished), min(stop, first + rows)
        if begin < end:
            yield begin, end
        first += rows


def _note(sources: Sequence[tuple[str, int]], erased: Mapping[str, Ranges], done: dict[str, int], stop: int) -> None:
    """Record that a file was read up to row ``stop``, as places in its sources."""
    first = 0
    for source, rows in sources:
        finished = place_after(min(rows, max(0, stop - first)), erased.get(source, ()))
        done[source] = max(done.get(source, 0), finished)
        first += rows


def _blame(store: Store, path: str, error: BaseException, faults: Faults, *, size: int) -> None:
    """Distinguish a damaged file from one that was removed or has grown, and from an unavailable storage.

    Raises:
        _GoneError: it was removed, or replaced by a longer one while it was read.
        StorageError: the storage is unavailable.
    """
    if store.size(path) != size:
        raise _GoneError from error
    faults.add(path, error)


def _restless(store: Store, folder: str) -> StorageError:
    return StorageError(
        f"{folder} in {store.uri!r} kept changing while it was read",
        hint="Try again once no compaction is running.",
    )
