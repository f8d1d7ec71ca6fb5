"""Erase the rows of one caller or one person, with their labels, from all files of a log.

Owns which rows and labels those are, and the order: the labels of all storages first, since they are found by the rows'
request ids, which an interrupted erasure must still find when it is repeated. How files are replaced is ``rewrite``'s.
Only one process at a time may rewrite the files of a log; writers may keep writing: what they write later is found by
the next call.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa

from raymlops.predictions.hourly import Counted, remove_profile, update_profile
from raymlops.predictions.labelled import SKEW, Keys, within
from raymlops.predictions.labels import SETTLED_S
from raymlops.predictions.partition import (
    BATCH_ROWS,
    MERGED,
    PROFILE,
    Faults,
    Live,
    is_foreign,
    is_temporary,
    open_file,
    survey,
)
from raymlops.predictions.paths import label_days, prediction_hours
from raymlops.predictions.rewrite import DamagedError, Group, rewrite
from raymlops.predictions.where import Search, Where, refuse_unsearched
from raymlops.records import Record
from raymlops.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from raymlops.predictions.hourly import CountedOn
    from raymlops.predictions.paths import Folder
    from raymlops.predictions.rewrite import Mask, Matches

ABANDONED = timedelta(minutes=5)
"""A temporary file of labels this old was left by a writer that was killed."""
LABELS_OPEN = timedelta(seconds=SETTLED_S + 5)
"""A file of labels that is younger may still be written again, so that what replaced it would lack what it holds then;
clocks may differ by the rest."""
OF_LABELS = {"request_id", "row", "key_id", "caller"}
"""Conditions on these alone also find labels whose row is not in the log."""

_KEY = pa.schema([("request_id", pa.string()), ("row", pa.int32()), ("caller", pa.string())])


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
    """Files that cannot be read, or that another program wrote, and storages: they may hold such rows."""
    open_labels: int = 0
    """Labels to erase in files that their writer has not finished; they and their rows are left to the next call."""
    erased: bool = False

    problem: str = ""
    """Why a row could not be compared; empty where all were."""
    days: Mapping[str, int] = field(default_factory=dict)
    """Rows by their day, by UTC."""

    @classmethod
    def total(cls, records: Iterable[EraseRecord]) -> EraseRecord:
        """Return the sum of calls for several storages."""
        every = list(records)
        counts = ("rows", "labels", "searched", "unsearched", "open_labels")
        sums = {count: sum(getattr(record, count) for record in every) for count in counts}
        damaged = tuple(sorted({path for record in every for path in record.damaged}))
        problem = next((record.problem for record in every if record.problem), "")
        days = sum((Counter(record.days) for record in every), Counter[str]())
        return replace(every[0], **sums, damaged=damaged, problem=problem, days=dict(sorted(days.items())))

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

    uris: Sequence[str]
    """The storages of the log; labels may be in another one than their rows."""
    name: str
    where: Where
    since: datetime | None = None
    until: datetime | None = None
    open_store: Callable[[str], Store] = Store
    counted_on: CountedOn = lambda _version: Counted()
    """What the hours of a version are counted on: profiles of hours with such rows are made again."""
    erased: list[pa.Table] = field(default_factory=list, init=False)
    """Request id, row and caller of each row found by ``run`` so far; about 60 bytes each."""

    def find(self) -> EraseRecord:
        """Return what there is to erase, and change nothing.

        Raises:
            StorageError: a storage cannot be used.
        """
        return self._go(now=None)

    def run(self, *, now: datetime, again_since: datetime | None = None) -> EraseRecord:
        """Erase everything that is found now.

        A further call may leave out hours that ended by ``again_since``, unless the previous one left open labels.

        Raises:
            StorageError: a storage cannot be used; where some was erased, the same call completes it.
        """
        return self._go(now=now, again_since=again_since)

    def _go(self, *, now: datetime | None, again_since: datetime | None = None) -> EraseRecord:
        passes = [_Pass(self, uri, now=now, again_since=again_since) for uri in self.uris]
        found_now = [keys for each in passes for keys in each.find_rows()]
        if now is not None:
            self.erased += found_now
        rows = _index(found_now if now is None else self.erased)
        unfinished = [keys for each in passes for keys in each.find_labels(rows)]
        # A row goes after its labels, whichever storage they are in, so that a later call still finds them by it.
        held, wait = _index(unfinished), any(each.grown for each in passes)
        for each in passes:
            each.hold_rows(held, wait=wait)
        if now is not None:
            for each in passes:
                each.erase_labels()
            for each in passes:
                each.erase_rows(now)
        return EraseRecord.total(each.record() for each in passes)


@dataclass
class _Found:
    """A file with rows to erase, and their keys."""

    folder: str
    live: Live
    schema: pa.Schema
    rows: int
    keys: pa.Table


class _Pass:
    """One way through the files of a storage, which changes them if it is told the time."""

    def __init__(self, job: Erasure, uri: str, *, now: datetime | None, again_since: datetime | None) -> None:
        self.grown = 0
        """Files of labels that their writer replaced meanwhile."""
        self._job = job
        self._now = now
        self._since = max(filter(None, (job.since, again_since)), default=None)
        self._store = job.open_store(uri)
        self._faults = Faults()
        self._search = self._searched = Search(job.where)
        self._uncounted: set[str] = set()
        """Hours without a profile: an interrupted call may have left them so."""
        self._rows = self._held = Keys.of_rows(_KEY.empty_table())
        self._by_itself = job.since is None and job.until is None and {*job.where.fields} <= OF_LABELS
        self._hours: list[Folder] = []
        self._found: list[_Found] = []
        self._labels: list[_Found] = []
        self._open_labels = 0

    def find_rows(self) -> list[pa.Table]:
        """Return the keys of the rows to erase, a table a file."""
        job = self._job
        self._hours = prediction_hours(self._store, job.name, since=self._since, until=job.until)
        columns = [*dict.fromkeys((*job.where.fields, "request_id", "row", "ts", "caller"))]
        self._found = [found for hour in self._hours for found in self._files(hour.path, self._is_row, columns)]
        self._searched = replace(self._search)  # before it has seen labels
        return [found.keys for found in self._found]

    def find_labels(self, rows: Keys) -> list[pa.Table]:
        """Find the labels of ``rows``, which may be in other storages; return the keys of those that have to wait."""
        self._rows = rows
        if not (len(rows.hashes) or self._by_itself):
            return []
        since = None if self._since is None else self._since - SKEW
        days = label_days(self._store, self._job.name, since=since)
        labels = [found for day in days for found in self._files(day.path, self._is_label, None)]
        unfinished = [found.keys for found in labels if self._is_open(found.live)]
        self._labels = [found for found in labels if not self._is_open(found.live)]
        self._open_labels = sum(map(len, unfinished))
        return unfinished

    def hold_rows(self, held: Keys, *, wait: bool) -> None:
        """Keep the rows whose labels have to wait; all of them where it is not known which those are."""
        self._held = held
        self._found = [found for found in self._found if not wait and self._free(found)]

    def erase_labels(self) -> None:
        """Replace the files of labels."""
        self._labels = [found for found in self._labels if self._erase(found, self._is_label)]

    def erase_rows(self, now: datetime) -> None:
        """Replace the files of rows, and count their hours again."""
        # A profile goes before its rows, so that none outlives them.
        changed = {found.folder for found in self._found}
        for folder in changed:
            remove_profile(self._store, folder)
        self._found = [found for found in self._found if self._erase(found, self._is_free_row)]
        for hour in self._hours:
            is_due = hour.path in changed or (hour.path in self._uncounted and hour.end <= now)
            if is_due and (counted := self._job.counted_on(hour.version or 0)):
                update_profile(self._store, hour.path, counted, self._faults)

    def record(self) -> EraseRecord:
        """Return what was found or erased."""
        starts = {hour.path: hour.start for hour in self._hours}
        days = Counter[str]()
        for found in self._found:
            days[f"{starts[found.folder]:%Y-%m-%d}"] += self._free(found)
        return EraseRecord(
            self._job.name,
            tuple(self._job.where.fields),
            rows=days.total(),
            days={day: number for day, number in days.items() if number},
            labels=sum(len(found.keys) for found in self._labels),
            searched=self._searched.searched,
            unsearched=self._searched.unsearched,
            problem=self._searched.problem,
            damaged=tuple(sorted(self._faults.damaged)),
            open_labels=self._open_labels + self.grown,
            erased=self._now is not None,
        )

    def _is_row(self, batch: pa.RecordBatch) -> Mask:
        return self._search.matches(batch) & within(batch["ts"], self._job.since, self._job.until)

    def _is_free_row(self, batch: pa.RecordBatch) -> Mask:
        return self._is_row(batch) & (self._held.places(_key(batch)) < 0)

    def _free(self, found: _Found) -> int:
        """Return how many rows of a file may go now."""
        return sum(int((self._held.places(batch) < 0).sum()) for batch in found.keys.to_batches())

    def _is_label(self, batch: pa.RecordBatch) -> Mask:
        found = self._rows.places(_key(batch)) >= 0
        return found | self._search.matches(batch) if self._by_itself else found

    def _files(self, folder: str, matches: Matches, columns: Sequence[str] | None) -> Iterator[_Found]:
        """Yield the files of a folder that hold such rows, and remove what interrupted calls and writers left."""
        files, replaced = survey(self._store, folder, self._faults)
        others = [*self._store.files(folder)]
        self._faults.damaged.update(f"{folder}/{name}" for name in filter(is_foreign, others))
        if PROFILE not in others:
            self._uncounted.add(folder)
        if self._now is not None:
            # A writer of rows tries again after a second; one of labels would have to refuse them.
            left = [name for name in others if is_temporary(name) and (matches == self._is_row or self._is_left(name))]
            for name in (*replaced, *left):
                self._store.remove(f"{folder}/{name}")
        for live in files:
            try:
                with open_file(self._store, f"{folder}/{live.name}", size=live.size) as file:
                    batches = file.iter_batches(batch_size=BATCH_ROWS, columns=columns)
                    keys = pa.Table.from_batches((_key(b).filter(pa.array(matches(b))) for b in batches), _KEY)
                    if len(keys):
                        keys = keys.combine_chunks()
                        yield _Found(folder, live, file.schema_arrow, file.metadata.num_rows, keys)
            except (OSError, pa.ArrowException) as error:
                if matches == self._is_label and self._is_open(live):
                    self.grown += 1  # it was replaced by a longer one while it was read
                else:
                    self._faults.add(f"{folder}/{live.name}", error)

    def _is_left(self, name: str) -> bool:
        """Return whether nobody will finish a file; a merged one is an interrupted call's, as nobody else may merge."""
        return MERGED in name or self._is_older(name[1:], ABANDONED)

    def _is_open(self, live: Live) -> bool:
        return not self._is_older(live.name, LABELS_OPEN)

    def _is_older(self, name: str, age: timedelta) -> bool:
        """Return whether a file is older than that, by its name, which begins with the time of the first attempt."""
        text = name.partition("-")[0]
        return self._now is None or not text.isdigit() or int(text) / 1000 < (self._now - age).timestamp()

    def _erase(self, found: _Found, matches: Matches) -> bool:
        """Replace a file; return whether that was possible."""
        try:
            rewrite(self._store, found.folder, Group(found.schema, [(found.live, found.rows)]), erase=matches)
        except DamagedError as error:
            self._faults.add(f"{found.folder}/{found.live.name}", error)
            return False
        return True


def _key(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return request id, row, and who asked or whose requests labels are for, which earlier releases did not write."""
    if "caller" not in batch.schema.names:
        batch = batch.append_column("caller", pa.nulls(batch.num_rows, pa.string()))
    return batch.select(_KEY.names)


def _index(keys: Iterable[pa.Table]) -> Keys:
    return Keys.of_rows(pa.concat_tables([_KEY.empty_table(), *keys]))
