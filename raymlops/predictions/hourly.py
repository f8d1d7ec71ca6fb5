"""One profile an hour and version, in a file beside the rows that were counted: a window of traffic is a sum of hours.

Owns which rows count, and when a profile is out of date: it names the files that it was made from, and is made again
once others are there. Only the process that may rewrite the files of a log makes profiles. Knows layouts, and not where
they come from: a version's hours are counted on those of its bundle, and its features on those of others that are live
beside it too, so that the features of all versions add up on each of them.

``features`` counts the rows that were answered to a caller, so that each request counts once over all versions;
``predictions`` counts the answers of shadows too. A row of a sampled log counts as often as its weight, and what a
window says of chance is counted by the requests, since these are what is drawn. Redacted fields are not counted, and
the rows that have them are.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.errors import RaymlopsError
from raymlops.predictions.partition import PROFILE, Faults, has_files, read_folder, survey
from raymlops.predictions.paths import prediction_hours
from raymlops.predictions.schema import FEATURES, OUTPUT
from raymlops.profiles.count import Counter
from raymlops.profiles.file import read_contents, read_profiles, write_profiles
from raymlops.profiles.profile import Profile
from raymlops.profiles.slices import parts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from raymlops.profiles.layout import Cells, Layout
    from raymlops.profiles.slices import Slice
    from raymlops.storage.store import Store

    CountedOn = Callable[[int], "Counted"]
    """Returns what the hours of a version are counted on."""

SIDES = {"features": FEATURES, "predictions": OUTPUT}
"""The struct in the log of each side of a bundle."""
_AT_A_TIME = 16
_AHEAD = 64
"""Hours that are read before they are asked for."""


@dataclass(frozen=True)
class Counted:
    """What the hours of a version are counted on; false where its bundle has no layouts."""

    layouts: Mapping[str, Sequence[Layout]] = field(default_factory=dict)
    """By side; the profiles of an hour are made again where one is missing."""
    slices: Sequence[Slice] = ()
    """Of rows by their features, which have profiles of their own."""

    def __bool__(self) -> bool:
        return bool(self.layouts)

    def profiles(self) -> Iterator[tuple[str, Layout]]:
        """Yield the side, of all rows or of a slice, and the layout of each profile of an hour."""
        for side, layouts in self.layouts.items():
            for name in (side, *(each.qualify(side) for each in self.slices)):
                yield from ((name, layout) for layout in layouts)


@dataclass(frozen=True)
class HourProfile:
    """The profiles of one version in one hour by the side that was asked for; empty where there is none."""

    start: datetime
    version: int
    profiles: Mapping[str, Profile]


def update_profile(store: Store, folder: str, counted: Counted, faults: Faults) -> bool:
    """Make the profile of an hour unless it is up to date; return whether it was made.

    An hour that cannot be counted is one of the ``faults``, and keeps nothing else from being done.

    Raises:
        StorageError: the storage cannot be used.
    """
    # Listed first: rows that come while they are counted make it out of date.
    files = {live.name: live.size for live in survey(store, folder, faults)[0]}
    if not files or _is_current(store, folder, counted, files):
        return False
    try:
        data = write_profiles(_counted(store, folder, counted, faults), about={"files": files})
    except RaymlopsError:
        raise
    except Exception as error:
        faults.add_uncounted(folder, error)
        return False
    store.write(f"{folder}/{PROFILE}", pa.py_buffer(data))
    return True


def _counted(store: Store, folder: str, counted: Counted, faults: Faults) -> list[tuple[str, Profile]]:
    counters: dict[tuple[str, Layout], dict[float, Counter]] = {wanted: {} for wanted in counted.profiles()}
    for batch in read_folder(store, folder, faults, columns=["row", "route", "weight", FEATURES, OUTPUT]):
        for weight, part in by_weight(batch):
            for side, layouts in counted.layouts.items():
                rows = part
                if side == "features":
                    rows = part.filter(pc.fill_null(pc.not_equal(part["route"], "shadow"), True))
                chosen_by, requests = _fields(rows, {each.column for each in counted.slices}), _requests(rows)
                for layout in layouts:
                    # Where all fields of a side are redacted, its rows are counted nevertheless.
                    columns = columns_on(rows[SIDES[side]], layout) if SIDES[side] in rows.schema.names else {}
                    found = counters[side, layout].setdefault(weight, Counter(layout))
                    found.add(columns, rows=rows.num_rows, requests=requests)
                    for each, some, numbers in parts_of(counted.slices, columns, chosen_by):
                        found = counters[each.qualify(side), layout].setdefault(weight, Counter(layout))
                        found.add(some, rows=len(numbers), requests=requests[numbers])
    return [
        (side, Profile.weighted({weight: counter.profile() for weight, counter in by_weight.items()}, layout))
        for (side, layout), by_weight in counters.items()
    ]


def _requests(batch: pa.RecordBatch) -> Cells:
    """Return the number of each row's request; rows of one are written one after the other."""
    numbers = batch["row"].to_numpy(zero_copy_only=False)
    return np.cumsum(np.diff(numbers, prepend=numbers[:1]) <= 0)


def remove_profile(store: Store, folder: str) -> None:
    """Remove the profile of an hour whose rows are about to be erased.

    Raises:
        StorageError: the storage cannot be used.
    """
    store.remove(f"{folder}/{PROFILE}")


def hourly_profiles(
    store: Store,
    name: str,
    layouts: Mapping[str, Layout],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    version: int | None = None,
) -> Iterator[HourProfile]:
    """Yield the profiles of every hour of a window that has rows, the oldest first, reading at most 64 ahead.

    ``layouts`` names the sides; of a slice by ``Slice.qualify``. One that has not been made yet, is damaged, or was
    counted on other layouts, is not there.

    Raises:
        StorageError: the storage cannot be used.
    """
    folders = prediction_hours(store, name, since=since, until=until, version=version)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for start in range(0, len(folders), _AHEAD):
            some = folders[start : start + _AHEAD]
            found = pool.map(lambda folder: _read(store, folder.path, layouts), some)
            for folder, profiles in zip(some, found, strict=True):
                if profiles is not None:
                    yield HourProfile(folder.start, folder.version or 0, profiles)


def _read(store: Store, folder: str, layouts: Mapping[str, Layout]) -> Mapping[str, Profile] | None:
    """Return the profiles of an hour; None where it has no rows to count."""
    data = _stored(store, folder)
    if data is None:
        return {} if has_files(store, folder) else None
    try:
        return read_profiles(data, layouts)
    except ValueError:  # damaged, or of a newer release
        return {}


def _stored(store: Store, folder: str) -> bytes | None:
    path = f"{folder}/{PROFILE}"
    size = store.size(path)
    if size is None:
        return None
    try:
        return bytes(store.open(path, size=size).read())
    except FileNotFoundError:
        return None


def _is_current(store: Store, folder: str, counted: Counted, files: Mapping[str, int]) -> bool:
    data = _stored(store, folder)
    if data is None:
        return False
    try:
        about, there = read_contents(data)
    except ValueError:
        return False
    return about.get("files") == files and there >= {(side, layout.digest) for side, layout in counted.profiles()}


def by_weight(batch: pa.RecordBatch) -> list[tuple[float, pa.RecordBatch]]:
    """Return a batch's rows by their weight, 1 where an earlier release wrote none."""
    if "weight" not in batch.schema.names:
        return [(1.0, batch)]
    weights = pc.fill_null(batch["weight"], 1.0)
    found = pc.unique(weights).to_pylist()
    return [(w, batch if len(found) == 1 else batch.filter(pc.equal(weights, w))) for w in found]


def _fields(batch: pa.RecordBatch, names: Iterable[str]) -> dict[str, Any]:
    """Return some features, those that are there."""
    if FEATURES not in batch.schema.names:
        return {}
    there = {each.name for each in batch.schema.field(FEATURES).type}
    return {name: pc.struct_field(batch[FEATURES], name) for name in there.intersection(names)}


def columns_on(struct: pa.StructArray, layout: Layout) -> dict[str, Any]:
    """Return the columns of a layout that a side of logged rows has, ready to be counted."""
    names = {each.name for each in struct.type}
    columns: dict[str, Any] = {}
    for name, placed in layout.by_column.items():
        if name in names:
            array = pc.struct_field(struct, name)
            is_digest = pa.types.is_string(array.type) and all(series.measure != "category" for series, _ in placed)
            columns[name] = {"size": _sizes(array)} if is_digest else array
    return columns


def _sizes(digests: pa.Array) -> Any:
    """Return the lengths that ``sha256:HEX LENGTH`` ends with."""
    lengths = pc.struct_field(pc.extract_regex(digests, r" (?P<length>[0-9]+)$"), "length")
    return pc.cast(lengths, pa.float64()).to_numpy(zero_copy_only=False)
