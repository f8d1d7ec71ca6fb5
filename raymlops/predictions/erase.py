"""Erase the rows of one caller or one person, with their labels, from all files of a log.

Owns which rows and labels those are, and the order: labels first, since they are found by the rows' request ids, which
an interrupted erasure must still find when it is repeated. How files are replaced is ``rewrite``'s. Only one process
at a time may rewrite the files of a log; writers may keep writing: what they write later is found by the next call.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.predictions.hourly import remove_profile, update_profile
from raymlops.predictions.labelled import SKEW, within
from raymlops.predictions.labels import SETTLED_S
from raymlops.predictions.partition import BATCH_ROWS, MERGED, Faults, Live, open_file, survey
from raymlops.predictions.paths import label_days, prediction_hours
from raymlops.predictions.rewrite import DamagedError, Group, rewrite
from raymlops.predictions.where import Search, Where, refuse_unsearched
from raymlops.records import Record
from raymlops.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from raymlops.predictions.hourly import LayoutsOf
    from raymlops.predictions.rewrite import Mask, Matches

ABANDONED = timedelta(minutes=5)
"""A temporary file this old was left by a writer that was killed; one that still writes it tries again."""
LABELS_OPEN = timedelta(seconds=SETTLED_S + 5)
"""A file of labels that is younger may still be written again, so that what replaced it would lack what it holds then;
clocks may differ by the rest."""
OF_LABELS = {"request_id", "row", "key_id", "caller"}
"""Conditions on these alone also find labels whose row is not in the log."""

Key = tuple[str, int]
"""Request id and row."""


@dataclass(frozen=True)
class EraseRecord(Record):
    """What there is to erase, or what was erased."""

    name: str
    fields: tuple[str, ...]
    """By which it was searched. Their values are personal data, and kept nowhere."""
    rows: int
    labels: int
    searched: int
    """Rows that were compared."""
    unsearched: int
    """Rows that could not be: without one of the fields, or with one of another type."""
    damaged: tuple[str, ...] = ()
    """Files that cannot be read, and may hold such rows."""
    open_labels: int = 0
    """Labels to erase in files that their writer has not finished; they and their rows are left to the next call."""
    erased: bool = False

    problem: str = ""
    """Why a row could not be compared; empty where all were."""

    @classmethod
    def total(cls, records: Iterable[EraseRecord]) -> EraseRecord:
        """Return the sum of calls for several storages."""
        every = list(records)
        counts = ("rows", "labels", "searched", "unsearched", "open_labels")
        sums = {count: sum(getattr(record, count) for record in every) for count in counts}
        damaged = tuple(sorted({path for record in every for path in record.damaged}))
        problem = next((record.problem for record in every if record.problem), "")
        return replace(every[0], **sums, damaged=damaged, problem=problem)

    def then(self, later: EraseRecord) -> EraseRecord:
        """Return the sum with a later call, which saw what was written meanwhile."""
        both = EraseRecord.total([self, later])
        return replace(both, searched=self.searched, unsearched=self.unsearched, open_labels=later.open_labels)

    def check(self) -> None:
        """Reject conditions that can find nothing, such as by a misspelt field.

        Raises:
            UsageError: there are rows, and none could be compared.
        """
        refuse_unsearched(self.searched, self.unsearched, self.problem)


@dataclass(eq=False)
class Erasure:
    """The rows of a log that fulfil conditions and arrived from ``since`` until before ``until``, and their labels.

    Called again, it also erases what was written meanwhile: labels of rows that it erased before included.
    """

    uri: str
    name: str
    where: Where
    since: datetime | None = None
    until: datetime | None = None
    open_store: Callable[[str], Store] = Store
    layouts_of: LayoutsOf = lambda _version: None
    """The layouts that the hours of a version are counted on: profiles of hours with such rows are made again."""
    callers: dict[Key, set[str | None]] = field(default_factory=dict)
    """Who asked for each row found so far; about 400 bytes each."""

    def find(self) -> EraseRecord:
        """Return what there is to erase, and change nothing.

        Raises:
            StorageError: the storage cannot be used.
        """
        return _Pass(self).go()

    def run(self, *, now: datetime, again_since: datetime | None = None) -> EraseRecord:
        """Erase everything that is found now.

        A further call may leave out hours that ended by ``again_since``, unless the previous one left open labels.

        Raises:
            StorageError: the storage cannot be used; where it erased some, the same call completes it.
        """
        return _Pass(self, now=now, again_since=again_since).go()


@dataclass
class _Found:
    """A file with rows to erase, and their keys."""

    folder: str
    live: Live
    schema: pa.Schema
    rows: int
    keys: list[tuple[str, int, str | None]]
    """With the caller."""


class _Pass:
    """One way through the files, which changes them if it is told the time."""

    def __init__(self, job: Erasure, *, now: datetime | None = None, again_since: datetime | None = None) -> None:
        self._job = job
        self._now = now
        self._since = max(filter(None, (job.since, again_since)), default=None)
        self._store = job.open_store(job.uri)
        self._faults = Faults()
        self._search = Search(job.where)
        self._grown = 0
        self._held: set[Key] = set()
        self._ids = pa.nulls(0, pa.string())
        self._by_itself = job.since is None and job.until is None and {*job.where.fields} <= OF_LABELS

    def go(self) -> EraseRecord:
        job = self._job
        hours = prediction_hours(self._store, job.name, since=self._since, until=job.until)
        columns = [*dict.fromkeys((*job.where.fields, "request_id", "row", "ts", "caller"))]
        rows = [found for hour in hours for found in self._files(hour.path, self._is_row, columns)]
        search = replace(self._search)  # before it has seen labels
        for request_id, row, caller in (key for found in rows for key in found.keys):
            job.callers.setdefault((request_id, row), set()).add(caller)
        self._ids = pa.array({request_id for request_id, _ in job.callers}, pa.string())
        since = None if self._since is None else self._since - SKEW
        days = label_days(self._store, job.name, since=since) if job.callers or self._by_itself else []
        labels = [found for day in days for found in self._files(day.path, self._is_label, None)]
        unfinished = [found for found in labels if self._is_open(found.live)]
        labels = [found for found in labels if not self._is_open(found.live)]
        # A row goes after its labels, so that a later call, also of another process, still finds them by it.
        self._held = {(request_id, row) for found in unfinished for request_id, row, _ in found.keys}
        rows = [found for found in rows if not self._grown and not self._are_held(found)]
        if self._now is not None:
            for found in labels:
                self._erase(found, self._is_label)
            # A profile goes before its rows, so that none outlives them.
            for folder in dict.fromkeys(found.folder for found in rows):
                remove_profile(self._store, folder)
            for found in rows:
                self._erase(found, self._is_free_row)
            changed = {found.folder for found in rows}
            for hour in hours:
                layouts = self._job.layouts_of(hour.version or 0) if hour.path in changed else None
                if layouts:
                    update_profile(self._store, hour.path, layouts, self._faults)
        return EraseRecord(
            job.name,
            tuple(job.where.fields),
            rows=sum((request_id, row) not in self._held for found in rows for request_id, row, _ in found.keys),
            labels=sum(len(found.keys) for found in labels),
            searched=search.searched,
            unsearched=search.unsearched,
            problem=search.problem,
            damaged=tuple(sorted(self._faults.damaged)),
            open_labels=sum(len(found.keys) for found in unfinished) + self._grown,
            erased=self._now is not None,
        )

    def _is_row(self, batch: pa.RecordBatch) -> Mask:
        return self._search.matches(batch) & within(batch["ts"], self._job.since, self._job.until)

    def _is_free_row(self, batch: pa.RecordBatch) -> Mask:
        found = self._is_row(batch)
        for place in np.flatnonzero(found) if self._held else ():
            request_id, row, _ = (column[place].as_py() for column in _key(batch))
            found[place] = (request_id, row) not in self._held
        return found

    def _are_held(self, found: _Found) -> bool:
        return all((request_id, row) in self._held for request_id, row, _ in found.keys)

    def _is_label(self, batch: pa.RecordBatch) -> Mask:
        found = np.array(pc.is_in(batch["request_id"], value_set=self._ids), dtype=np.bool_)
        for place in np.flatnonzero(found):
            request_id, row, caller = (column[place].as_py() for column in _key(batch))
            of: Collection[str | None] = self._job.callers.get((request_id, row), frozenset())
            found[place] = bool(of) and (caller is None or not {caller, None}.isdisjoint(of))
        return found | self._search.matches(batch) if self._by_itself else found

    def _files(self, folder: str, matches: Matches, columns: Sequence[str] | None) -> Iterator[_Found]:
        """Yield the files of a folder that hold such rows, and remove what interrupted calls and writers left."""
        files, replaced = survey(self._store, folder, self._faults)
        if self._now is not None:
            for name in (*replaced, *self._abandoned(folder)):
                self._store.remove(f"{folder}/{name}")
        for live in files:
            try:
                with open_file(self._store, f"{folder}/{live.name}", size=live.size) as file:
                    keys: list[tuple[str, int, str | None]] = []
                    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                        mine = batch.filter(pa.array(matches(batch)))
                        keys += zip(*(column.to_pylist() for column in _key(mine)), strict=True)
                    if keys:
                        yield _Found(folder, live, file.schema_arrow, file.metadata.num_rows, keys)
            except (OSError, pa.ArrowException) as error:
                if matches == self._is_label and self._is_open(live):
                    self._grown += 1  # it was replaced by a longer one while it was read
                else:
                    self._faults.add(f"{folder}/{live.name}", error)

    def _abandoned(self, folder: str) -> Iterator[str]:
        """Yield temporary files; a merged one is always an interrupted call's, since nobody else may merge now."""
        for name in self._store.files(folder):
            if name.startswith(".") and (MERGED in name or self._is_older(name[1:], ABANDONED)):
                yield name

    def _is_open(self, live: Live) -> bool:
        return not self._is_older(live.name, LABELS_OPEN)

    def _is_older(self, name: str, age: timedelta) -> bool:
        """Return whether a file is older than that, by its name, which begins with the time of the first attempt."""
        text = name.partition("-")[0]
        return self._now is None or not text.isdigit() or int(text) / 1000 < (self._now - age).timestamp()

    def _erase(self, found: _Found, matches: Matches) -> None:
        try:
            rewrite(self._store, found.folder, Group(found.schema, [(found.live, found.rows)]), erase=matches)
        except DamagedError as error:
            self._faults.add(f"{found.folder}/{found.live.name}", error)


def _key(batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Return request id, row, and who asked or whose requests labels are for, which earlier releases did not write."""
    known = "caller" in batch.schema.names
    return batch["request_id"], batch["row"], batch["caller"] if known else pa.nulls(batch.num_rows, pa.string())
