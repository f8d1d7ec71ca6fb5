"""Read the predictions of a window of time, each row once, with its label.

Owns the window, the columns and the order. Memory is constant however many rows there are: batches of at most 8,192
rows from one file at a time; labels take what ``labelled`` says, ``limit`` its rows.
"""

from __future__ import annotations

import itertools
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.errors import UsageError
from raymlops.predictions.labelled import EMPTY, SKEW, load_labels, within
from raymlops.predictions.partition import Faults, read_folder, schemas_in
from raymlops.predictions.paths import check_known, prediction_hours
from raymlops.predictions.schema import FEATURES, FIELDS, OUTPUT
from raymlops.predictions.settings import in_sample
from raymlops.predictions.where import Search
from raymlops.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from raymlops.predictions.labelled import Labels
    from raymlops.predictions.paths import Folder
    from raymlops.predictions.where import Where

LABEL = "label"
COLUMNS = (*FIELDS, FEATURES, OUTPUT)
KEY = ["request_id", "row", "caller"]
"""By which a row's label is found."""
BEFORE = timedelta(days=1)
"""How long before the window rows of labels received within it are searched."""


@dataclass(eq=False)
class Reading:
    """The rows that arrived from ``since`` until before ``until``, the oldest first, to be iterated in batches.

    The order is that of hours and, within one, of writing: exact to about the log's ``flush_s``. With ``limit`` it is
    the newest rows of the window, in the order of arrival. ``columns`` may name fields, such as ``features.carrier``.
    With ``labels``, ``label`` is the JSON text of the row's label, null without one; loaded labels may be passed, for
    several readings. ``only_labelled`` skips rows without one, also of the newest ``limit``, and opens no file where
    there is no label. With ``where``, it is the rows that fulfil its conditions. Rows of one version have one schema,
    unless redaction changed; damaged files are skipped and listed. The counts are complete after a full iteration.

    Raises:
        NotFoundError: no such model or version has predictions; the message suggests similar names.
        UsageError: no such column, or a window that ends before it begins; after a full iteration also conditions that
            no row could be compared with.
        StorageError: the storage cannot be used; also while it is read.
    """

    uri: str
    name: str
    _: KW_ONLY
    since: datetime | None = None
    until: datetime | None = None
    version: int | None = None
    columns: Sequence[str] | None = None
    where: Where | None = None
    labels: bool | Labels = True
    only_labelled: bool = False
    limit: int | None = None
    rows: int = field(default=0, init=False)
    labelled: int = field(default=0, init=False)
    conflicts: int = field(default=0, init=False)
    """Labels in the window's time that contradict the one that counts and are not corrections."""
    _faults: Faults = field(default_factory=Faults, init=False)
    _search: Search | None = field(default=None, init=False)
    _labels: Labels | None = field(default=None, init=False)
    _share: float = field(default=1.0, init=False)
    """The smallest share of the requests that the log was a sample of, by the rows that were read."""
    _known: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_), init=False)
    """Which labelled rows were read, by the numbers in ``Labels.rows``."""

    def __post_init__(self) -> None:
        for column in self.columns or ():
            if column.partition(".")[0] not in COLUMNS:
                raise UsageError(f"no column {column!r}", hint=f"There are {', '.join(COLUMNS)}, and features.FIELD.")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"got a limit of {self.limit} rows; expected at least 1")
        self.since, self.until = _aware(self.since), _aware(self.until)
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise UsageError(f"the window ends at {self.until}, before it begins at {self.since}")
        self.store = Store(self.uri)
        check_known(self.store, self.name, version=self.version)

    @property
    def damaged(self) -> tuple[str, ...]:
        """Return the files that could not be read."""
        return tuple(sorted(self._faults.damaged))

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield batches."""
        self.rows = self.labelled = 0
        self._share = 1.0
        self._search = None if self.where is None else Search(self.where)
        if self.labels is not False:
            given = None if isinstance(self.labels, bool) else self.labels
            self._labels = given or load_labels(self.store, self.name, self._faults, since=self.since)
            self._known = np.zeros(len(self._labels.hashes), dtype=np.bool_)
            self.conflicts = self._labels.conflicts
        if self.only_labelled and not len(self._known):
            return
        batches = self._all() if self.limit is None else self._newest(self.limit)
        for found in batches:
            batch = self._finished(found)
            self.rows += batch.num_rows
            if batch.num_rows:
                yield batch
        if self._search is not None:
            self._search.check()

    @property
    def unsearched(self) -> int:
        """Return how many rows could not be compared with ``where``: they lack a field, or it has another type."""
        return 0 if self._search is None else self._search.unsearched

    @property
    def looked_back_to(self) -> datetime | None:
        """Return the time since which ``unknown_labels`` searches rows; None: since the first."""
        return None if self.since is None else self.since - BEFORE

    def unknown_labels(self, *, salt: Callable[[], str] = str) -> pa.Table:
        """Return the rows labelled within the window that are not in the log. Call it after iterating.

        Those are the request ids and rows, with the caller whose requests the label is for, whose first label arrived
        within the window, and that no version logged since a day before it: there was no such request of that caller,
        the row was not written (yet), or the label arrived more than a day after the answer. Requests that a sampled
        log leaves out are not among them; ``salt``, called for such a log alone, returns by what it was drawn.

        Reads nothing when every label has found its row; otherwise request ids only, the newest hours first, until
        every label has found it, at most the window and the day before it.

        Raises:
            StorageError: the storage cannot be used.
        """
        labels = self._labels
        if labels is None or self.where is not None:  # most of what was read was no match
            return EMPTY.select(KEY)
        wanted = labels.first_within(self.since, self.until)
        read = {folder.path for folder in self.folders() if self._is_inside(folder)} if self.limit is None else set()
        until = None if self.until is None else self.until + SKEW
        for folder in reversed(prediction_hours(self.store, self.name, since=self.looked_back_to, until=until)):
            if not (wanted & ~self._known[labels.rows]).any():
                break
            if folder.path not in read:
                for batch in read_folder(self.store, folder.path, self._faults, columns=[*KEY, "weight"]):
                    self._note(batch, labels.places(batch))
        left = labels.table.select(KEY).filter(pa.array(wanted & ~self._known[labels.rows]))
        if self._share < 1:
            drawn_by = salt()
            ids = left["request_id"].to_pylist()
            logged = [in_sample(request_id, self._share, salt=drawn_by) for request_id in ids]
            return left.filter(pa.array(logged, pa.bool_()))
        return left

    def folders(self) -> list[Folder]:
        """Return the hours that are read, the oldest first."""
        return prediction_hours(self.store, self.name, since=self.since, until=self.until, version=self.version)

    def schemas(self) -> Iterator[pa.Schema]:
        """Yield the schema of every file to read, which opens each."""
        for folder in self.folders():
            for schema in schemas_in(self.store, folder.path, self._faults):
                chosen = pa.schema([schema.field(name) for name in self._wanted(schema)])
                yield chosen.append(pa.field(LABEL, pa.string())) if self.labels is not False else chosen

    def _all(self) -> Iterator[pa.RecordBatch]:
        for folder in self.folders():
            yield from self._folder(folder)

    def _folder(self, folder: Folder) -> Iterator[pa.RecordBatch]:
        needed = ("ts", "weight", *KEY, *(() if self.where is None else self.where.fields))
        columns = None if self.columns is None else [*dict.fromkeys((*self.columns, *needed))]
        # Only hours at the edges of the window are filtered row by row.
        since = self.since if self.since is not None and self.since > folder.start else None
        until = self.until if self.until is not None and self.until < folder.end else None
        for found in read_folder(self.store, folder.path, self._faults, columns=columns):
            inside = since is None and until is None
            batch = found if inside else found.filter(pa.array(within(found["ts"], since, until)))
            if self._search is not None:
                batch = batch.filter(pa.array(self._search.matches(batch)))
            if batch.num_rows:
                yield batch

    def _is_inside(self, folder: Folder) -> bool:
        return (self.since is None or self.since <= folder.start) and (self.until is None or folder.end <= self.until)

    def _note(self, batch: pa.RecordBatch, places: npt.NDArray[np.int64]) -> None:
        """Note which labels' rows were read, and what share of the requests is logged."""
        if "weight" in batch.schema.names and batch.num_rows:
            self._share = min(self._share, 1.0 / max(1.0, pc.max(batch["weight"]).as_py() or 1.0))
        if self._labels is not None:
            self._known[self._labels.rows[places[places >= 0]]] = True

    def _newest(self, limit: int) -> Iterator[pa.RecordBatch]:
        kept: list[pa.RecordBatch] = []
        hours = itertools.groupby(reversed(self.folders()), key=lambda folder: folder.start)
        for _, folders in hours:
            for folder in folders:
                for batch in self._folder(folder):
                    kept.append(batch)
                    if sum(map(len, kept)) > 2 * limit + 65_536:
                        kept = _top(kept, limit)
            if sum(map(len, kept)) >= limit:
                break
        yield from _ordered(_top(kept, limit), limit)

    def _finished(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self._labels is None:
            return batch.select(self._wanted(batch.schema))
        places = self._labels.places(batch)
        if self.only_labelled:
            batch, places = batch.filter(pa.array(places >= 0)), places[places >= 0]
        chosen = batch.select(self._wanted(batch.schema))
        self._note(batch, places)
        found = self._labels.of(places)
        self.labelled += len(found) - found.null_count
        return chosen.append_column(LABEL, found)

    def _wanted(self, schema: pa.Schema) -> list[str]:
        """Return the columns for the caller."""
        if self.columns is None:
            return list(schema.names)
        asked = dict.fromkeys(column.partition(".")[0] for column in self.columns)
        return [column for column in asked if column in schema.names]


def _aware(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def _micros(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    return np.asarray(batch["ts"].cast(pa.int64()))


def _top(batches: list[pa.RecordBatch], limit: int) -> list[pa.RecordBatch]:
    """Return the newest rows, and those that arrived at the same time as the last of them."""
    if sum(map(len, batches)) <= limit:
        return batches
    times = np.concatenate([_micros(batch) for batch in batches])
    least = np.partition(times, len(times) - limit)[len(times) - limit]
    kept = (batch.filter(pa.array(_micros(batch) >= least)) for batch in batches)
    return [batch for batch in kept if batch.num_rows]


def _ordered(batches: list[pa.RecordBatch], limit: int) -> Iterator[pa.RecordBatch]:
    """Yield the newest rows in order of time; different schemas are in separate batches."""
    by_schema: dict[Any, list[pa.RecordBatch]] = {}
    for batch in batches:
        by_schema.setdefault(str(batch.schema), []).append(batch)
    tables = [pa.Table.from_batches(group).combine_chunks() for group in by_schema.values()]
    if not tables:
        return
    of_table = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    of_row = np.concatenate([np.arange(len(table)) for table in tables])
    times = np.concatenate([np.asarray(table["ts"].cast(pa.int64())) for table in tables])
    order = np.argsort(times, kind="stable")[-limit:]
    cuts = np.flatnonzero(np.diff(of_table[order])) + 1
    for run in np.split(order, cuts):
        yield from tables[of_table[run[0]]].take(pa.array(of_row[run])).combine_chunks().to_batches()
