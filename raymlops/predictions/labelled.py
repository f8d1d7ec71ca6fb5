"""Decide which label counts for a row, and look labels up for many rows at once.

A label with a caller counts for rows of that caller alone, one without for everybody's; what was asked without a key,
or logged by an earlier release, is nobody's, and any label counts for it. Of those the first one counts. Repeating it
changes nothing; a different one that is not marked as a correction does not replace it and is a conflict. Of
corrections the newest counts.

Memory: all labels that came in since the window began, about 350 bytes each while they are sorted (measured for ids of
36 characters: 340 MB for a million), a quarter of it afterwards. What is kept to find those of unknown rows is 9 bytes
each besides. With ``max_bytes`` it is bounded, at five times that number: where all labels would take more, those of a
random part of the rows are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.predictions.partition import Faults, read_folder
from raymlops.predictions.paths import label_days

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import numpy.typing as npt

    from raymlops.storage.store import Store

_COLUMNS = ["request_id", "row", "label", "correction", "received", "caller"]
_KEPT = ["request_id", "row", "label", "caller"]
EMPTY = pa.schema([(name, pa.int32() if name == "row" else pa.string()) for name in _KEPT]).empty_table()
_TIME = pa.timestamp("us", tz="UTC")
_HASHED_AT_ONCE = 8192
_MAX_PIECES = 512
"""Batches held separately; for a single label the overhead is tenfold."""
SKEW = timedelta(minutes=10)
"""How far the clock of a label's writer may be behind that of its prediction's."""


def key_hashes(ids: Any, rows: Any) -> npt.NDArray[np.int64]:
    """Return a number for each request id and row, the same for the same ones within a process."""
    numbers = np.asarray(rows, dtype=np.int64)
    texts = np.empty(len(numbers), np.int64)
    for start in range(0, len(numbers), _HASHED_AT_ONCE):  # as Python's own they take more than all the rest
        piece = ids.slice(start, _HASHED_AT_ONCE).to_pylist()
        texts[start : start + len(piece)] = np.fromiter(map(hash, piece), np.int64, len(piece))
    with np.errstate(over="ignore"):
        return texts ^ (numbers * np.int64(0x9E3779B97F4A7C1))


@dataclass(frozen=True)
class Keys:
    """Rows that are looked up by request id, row and caller."""

    table: pa.Table
    """``request_id``, ``row`` and ``caller``, and what else there is of each, in the order of ``hashes``."""
    hashes: npt.NDArray[np.int64]
    hash_of: Callable[[Any, Any], npt.NDArray[np.int64]] = key_hashes

    @classmethod
    def of_rows(cls, table: pa.Table) -> Keys:
        """Return rows in any order, ready to be looked up."""
        hashes = key_hashes(table["request_id"], table["row"])
        order = np.argsort(hashes, kind="stable")
        return cls(table.take(order).combine_chunks(), hashes[order])

    def places(self, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        """Return where in the table each row of a batch is, -1 where it is not; a caller that is null is any."""
        if not len(self.hashes):
            return np.full(batch.num_rows, -1)
        wanted = self.hash_of(batch["request_id"], batch["row"])
        at = np.searchsorted(self.hashes, wanted)
        found = np.full(batch.num_rows, -1)
        open_rows = np.arange(batch.num_rows)
        while len(open_rows):  # once, but for two keys of one hash
            here = at[open_rows]
            same = self.hashes[np.minimum(here, len(self.hashes) - 1)] == wanted[open_rows]
            open_rows = open_rows[same & (here < len(self.hashes))]
            candidates = self.table.take(at[open_rows])
            asked = batch.take(pa.array(open_rows))
            fits = pc.and_(
                pc.equal(candidates["request_id"], asked["request_id"]), pc.equal(candidates["row"], asked["row"])
            )
            if "caller" in asked.schema.names:  # null fits all
                own = pc.fill_null(pc.equal(candidates["caller"], asked["caller"]), fill_value=True)
                fits = pc.and_(fits, own)
            hit = np.asarray(fits, dtype=np.bool_)
            found[open_rows[hit]] = at[open_rows[hit]]
            open_rows = open_rows[~hit]
            at[open_rows] += 1
        return found


@dataclass(frozen=True, kw_only=True)
class Labels(Keys):
    """The label that counts for each row that has one: ``label``, as JSON text."""

    rows: npt.NDArray[np.int64]
    """Which of them are of one row: by several callers."""
    received: pa.Array
    """When the first label of each row came in."""
    known_at: pa.Array
    """When the label that counts did, which may be a correction."""
    contradicted: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=np.bool_))
    """Which of them another label of the row contradicts, and none corrects: of all labels, not of a sample."""
    conflicts: int = 0
    """Labels that contradict the one that counts and are not corrections."""
    every: int = 1
    """Sampling: one in this many rows is considered, 1 for all."""

    def of(self, places: npt.NDArray[np.int64]) -> pa.Array:
        """Return the labels at these places as JSON text, null where a place is -1."""
        return self.table["label"].combine_chunks().take(pa.array(places, mask=places < 0))

    def first_within(self, since: datetime | None, until: datetime | None) -> npt.NDArray[np.bool_]:
        """Return which labels are of rows whose first label came in from ``since`` until before ``until``."""
        return within(self.received, since, until)


def load_labels(
    store: Store,
    name: str,
    faults: Faults,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    max_bytes: int | None = None,
) -> Labels:
    """Return the labels that count, of all that came in since then, and before ``until``.

    With ``max_bytes`` of held labels, those of a random sample of rows where all would take more. Which rows are in it
    is unpredictable for callers, so that a flood of labels shrinks the sample without biasing it.

    Raises:
        StorageError: the storage cannot be used.
    """
    earliest = None if since is None else since - SKEW
    days = label_days(store, name, since=earliest)
    batches = (_whole(batch) for day in days for batch in read_folder(store, day.path, faults, columns=_COLUMNS))
    if until is not None:
        batches = (batch.filter(pa.array(within(batch["received"], None, until))) for batch in batches)
    if max_bytes is None:
        held = list(batches)
        return settle(pa.Table.from_batches(held) if held else None)
    sample = _Sample(max_bytes)
    for batch in batches:
        # A day's first labels may belong to requests long before the window.
        sample.add(batch.filter(pa.array(within(batch["received"], earliest, None))))
    return replace(settle(sample.events()), every=sample.every)


def settle(events: pa.Table | None, *, hashes: Callable[[Any, Any], npt.NDArray[np.int64]] = key_hashes) -> Labels:
    """Return the label that counts for each row, from labels in any order; ``received`` orders them."""
    if events is None or not events.num_rows:
        none = np.empty(0, np.int64)
        return Labels(EMPTY, none, hashes, rows=none, received=pa.nulls(0, _TIME), known_at=pa.nulls(0, _TIME))
    events, starts, ends = _by_caller(_whole(events))
    rows = np.cumsum(~_repeats(events, starts, ["request_id", "row"])) - 1
    kept = starts.copy()
    conflicts, contradicted = 0, np.zeros(len(starts), dtype=np.bool_)
    everybodys = _everybodys(events, starts, rows)
    said = np.asarray(events["label"].chunk(0).dictionary_encode().indices)
    corrects = np.asarray(events["correction"].chunk(0), dtype=np.bool_)
    received = np.asarray(events["received"].chunk(0).cast(pa.int64()))
    for group in np.flatnonzero(_differ(said, starts, everybodys)):
        places = np.arange(starts[group], ends[group])
        if (other := everybodys[group]) >= 0:
            places = np.concatenate([places, np.arange(starts[other], ends[other])])
            places = places[np.argsort(received[places], kind="stable")]
        corrections = corrects[places].tolist()
        chosen, contradicting = _choose(said[places].tolist(), corrections)
        kept[group] = places[chosen]
        conflicts += contradicting
        contradicted[group] = contradicting > 0 and not corrections[chosen]
    first, known_at = (events["received"].chunk(0).take(pa.array(places)) for places in (starts, kept))
    table = events.select(["request_id", "row", "label"]).take(kept)
    table = table.append_column("caller", events["caller"].take(pa.array(starts)))
    numbers = hashes(table["request_id"], table["row"])
    order = np.argsort(numbers, kind="stable")
    return Labels(
        table.take(order).combine_chunks(),
        numbers[order],
        hashes,
        rows=rows[order],
        received=first.take(pa.array(order)),
        known_at=known_at.take(pa.array(order)),
        contradicted=contradicted[order],
        conflicts=conflicts,
    )


class _Sample:
    """Labels held in bounded memory: of all rows, or of a part of them that is halved whenever it takes too much."""

    def __init__(self, max_bytes: int) -> None:
        self.every = 1
        self._max_bytes = max_bytes
        self._pieces: list[pa.RecordBatch] = []
        self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        batch = self._thinned(batch)
        self._pieces.append(batch)
        self._bytes += batch.nbytes
        if self._bytes > self._max_bytes or len(self._pieces) >= _MAX_PIECES:
            self._hold(self._smaller(self.events()) if self._bytes > self._max_bytes else self.events())

    def events(self) -> pa.Table | None:
        return pa.Table.from_batches(self._pieces).combine_chunks() if self._pieces else None

    def _hold(self, events: pa.Table) -> None:
        self._pieces, self._bytes = events.to_batches(), events.nbytes

    def _smaller(self, events: pa.Table) -> pa.Table:
        events = _deciding(events)
        while events.num_rows and events.nbytes > self._max_bytes / 2:
            self.every *= 2
            events = self._thinned(events)
        return events

    def _thinned(self, events: Any) -> Any:
        if self.every == 1:
            return events
        numbers = key_hashes(events["request_id"], events["row"])
        return events.filter(pa.array(numbers & (self.every - 1) == 0))


def _whole(events: Any) -> Any:
    """Return labels with all columns: files of earlier releases have no callers, and count for everybody's rows."""
    if "caller" not in events.schema.names:
        events = events.append_column("caller", pa.nulls(events.num_rows, pa.string()))
    return events.select(_COLUMNS)


def _by_caller(events: pa.Table) -> tuple[pa.Table, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return labels ordered by row, caller and time, and where those of each row and caller begin and end.

    Those without a caller are the last of their row.
    """
    events = events.append_column("order", pa.array(np.arange(events.num_rows)))
    keys = ["request_id", "row", "caller", "received", "order"]
    events = events.sort_by([(key, "ascending") for key in keys]).drop_columns("order").combine_chunks()
    starts = np.flatnonzero(~_repeats(events, np.arange(events.num_rows), ["request_id", "row", "caller"]))
    return events, starts, np.append(starts[1:], events.num_rows)


def _repeats(events: pa.Table, places: npt.NDArray[np.int64], keys: list[str]) -> npt.NDArray[np.bool_]:
    """Return which of these labels have the same values as the one before; null is a value of its own."""
    same = np.ones(len(places), dtype=np.bool_)
    same[0] = False
    for key in keys:
        column = events[key].chunk(0).take(pa.array(places))
        one, other = column[1:], column[:-1]
        equal = np.asarray(pc.fill_null(pc.equal(one, other), fill_value=False), dtype=np.bool_)
        same[1:] &= equal | np.asarray(pc.and_(pc.is_null(one), pc.is_null(other)), dtype=np.bool_)
    return same


def _everybodys(events: pa.Table, starts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each group of a caller's labels the group of those for everybody in the same row, -1 without one."""
    found = np.full(len(starts), -1)
    nobody = np.asarray(events["caller"].chunk(0).take(pa.array(starts)).is_null(), dtype=np.bool_)
    last = np.append(np.flatnonzero(np.diff(rows)), len(rows) - 1)[rows]
    beside = nobody[last] & ~nobody
    found[beside] = last[beside]
    return found


def _differ(
    said: npt.NDArray[Any], starts: npt.NDArray[np.int64], everybodys: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return which groups have labels that differ, with those for everybody: a repeated one changes nothing."""
    low, high = np.minimum.reduceat(said, starts), np.maximum.reduceat(said, starts)
    other = np.where(everybodys >= 0, everybodys, np.arange(len(starts)))
    return np.asarray(np.minimum(low, low[other]) < np.maximum(high, high[other]))


def _deciding(events: pa.Table) -> pa.Table:
    """Return the labels that decide which one counts: of each row and caller the first, and the newest correction."""
    events, starts, _ = _by_caller(events)
    corrections = np.asarray(events["correction"].chunk(0), dtype=np.bool_)
    newest = np.maximum.reduceat(np.where(corrections, np.arange(events.num_rows), -1), starts)
    return events.take(pa.array(np.union1d(starts, newest[newest >= 0]))).combine_chunks()


def within(times: pa.Array, since: datetime | None, until: datetime | None) -> npt.NDArray[np.bool_]:
    """Return which times are from ``since`` until before ``until``."""
    micros = np.asarray(times.cast(pa.int64()))
    kept = np.ones(len(micros), dtype=np.bool_)
    if since is not None:
        kept &= micros >= pa.scalar(since, _TIME).value
    if until is not None:
        kept &= micros < pa.scalar(until, _TIME).value
    return kept


def _choose(labels: list[int], corrections: list[bool]) -> tuple[int, int]:
    """Return which of a row's labels, oldest first, counts, and how many contradict it."""
    chosen, seen, conflicts = 0, {labels[0]}, 0
    for index in range(1, len(labels)):
        if corrections[index]:
            if not corrections[chosen] or labels[index] != labels[chosen]:  # repeating it changes nothing
                chosen = index
        elif labels[index] not in seen:
            conflicts += 1
        seen.add(labels[index])
    return chosen, conflicts
