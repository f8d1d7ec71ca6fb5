"""Merge the small files of past hours into few large ones, count what is in them, and remove hours beyond retention.

Owns which files are merged and which hours are over; how files are replaced is ``rewrite``'s. Interrupted anywhere,
nothing is lost or counted twice; the next call completes it. Writers may keep writing, also into past hours; only one
compaction may run at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa

from raymlops.predictions.hourly import Counted, update_profile
from raymlops.predictions.partition import Faults, Live, is_temporary, open_file, survey
from raymlops.predictions.paths import label_days, prediction_hours
from raymlops.predictions.rewrite import MERGED_BYTES, MERGED_ROWS, DamagedError, Group, rewrite
from raymlops.records import Record
from raymlops.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from raymlops.predictions.hourly import CountedOn

GRACE = timedelta(minutes=5)
"""How long writers may finish a past hour before it is merged. Later rows go into further files."""


@dataclass(frozen=True)
class CompactRecord(Record):
    """The result of one compaction."""

    name: str
    folders: int
    """Past hours and days that were changed."""
    merged: int
    """Small files that were merged."""
    into: int
    """Files that they were merged into."""
    rows: int
    damaged: tuple[str, ...] = ()
    profiled: int = 0
    """Past hours whose rows were counted: see ``hourly``."""


@dataclass
class _Work:
    merged: int = 0
    into: int = 0
    rows: int = 0
    faults: Faults = field(default_factory=Faults)


def compact(
    uri: str,
    name: str,
    *,
    now: datetime,
    since: datetime | None = None,
    counted_on: CountedOn = lambda _version: Counted(),
    open_store: Callable[[str], Store] = Store,
) -> CompactRecord:
    """Merge the small files of every past hour of predictions and every past day of labels.

    ``since`` skips older ones, which saves listing each of them on an object store. ``counted_on`` returns what the
    hours of a version are counted on.

    Raises:
        StorageError: the storage cannot be used; completed merges are kept.
    """
    store, work, folders, profiled = open_store(uri), _Work(), 0, 0
    for folder in (*prediction_hours(store, name), *label_days(store, name)):
        if folder.end + GRACE <= now and (since is None or folder.end > since):
            folders += _compact_folder(store, folder.path, work)
            counted = Counted() if folder.version is None else counted_on(folder.version)
            if counted:
                profiled += update_profile(store, folder.path, counted, work.faults)
            if folder.version is not None:
                store.remove_empty(folder.path)  # of a writer that was killed, or whose disk was full
    damaged = tuple(sorted(work.faults.damaged))
    return CompactRecord(name, folders, work.merged, work.into, work.rows, damaged, profiled)


def retain(uri: str, name: str, *, before: datetime, removed: Callable[[str], None]) -> None:
    """Remove the hours of predictions and days of labels that ended by ``before``; call ``removed`` once each is gone.

    A label arrives after its prediction, so no label is removed whose prediction is kept.

    Raises:
        StorageError: the storage cannot be used; some may have been removed.
    """
    store = Store(uri)
    old = [folder for folder in (*prediction_hours(store, name), *label_days(store, name)) if folder.end <= before]
    for folder in old:
        store.remove(folder.path)
        for parent in folder.parents():
            store.remove_empty(parent)
        removed(folder.path)


def _compact_folder(store: Store, folder: str, work: _Work) -> bool:
    found, replaced = survey(store, folder, work.faults)
    for name in replaced:  # a previous compaction was interrupted
        store.remove(f"{folder}/{name}")
    for name in store.files(folder):
        if is_temporary(name):  # of an interrupted writer; one that is still writing retries
            store.remove(f"{folder}/{name}")
    done = bool(replaced)
    for group in _groups(store, folder, [live for live in found if not _is_large(live)], work.faults):
        while len(group.files) > 1:
            try:
                rows = rewrite(store, folder, group)
            except DamagedError as error:
                work.faults.add(f"{folder}/{error.live.name}", error)
                group.files = [(live, rows) for live, rows in group.files if live is not error.live]
                continue
            work.merged, work.into, work.rows = work.merged + len(group.files), work.into + 1, work.rows + rows
            done = True
            break
    return done


def _is_large(live: Live) -> bool:
    rows = sum(count for _, count in live.sources)
    return bool(live.sources) and (rows > MERGED_ROWS // 2 or live.size > MERGED_BYTES // 2)


def _groups(store: Store, folder: str, found: Sequence[Live], faults: Faults) -> Iterator[Group]:
    """Yield groups of files to merge: of one schema, in order, up to the size of a merged file."""
    group: Group | None = None
    rows = size = 0
    for live in found:
        path = f"{folder}/{live.name}"
        try:
            with open_file(store, path, size=live.size) as file:
                schema, count = file.schema_arrow, file.metadata.num_rows
        except FileNotFoundError:
            continue
        except (OSError, pa.ArrowException) as error:
            faults.add(path, error)
            continue
        fits = rows + count <= MERGED_ROWS and size + live.size <= MERGED_BYTES
        if group is None or not fits or not group.schema.equals(schema):
            if group is not None:
                yield group
            group, rows, size = Group(schema, []), 0, 0
        group.files.append((live, count))
        rows, size = rows + count, size + live.size
    if group is not None:
        yield group
