"""Read labels from requests, and store them so that an accepted one is never lost.

Owns the format of a label and the writing thread. Labels that arrive while others are written are written together. A
file grows for a few seconds: it is replaced by one that holds later labels too, so that a stream of single labels makes
few files, and none of them waits. Which of several labels for one row counts is decided by ``labelled``.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from raymlops.errors import InvalidRowsError, RowProblem, StorageError
from raymlops.predictions.label_type import LabelType
from raymlops.predictions.owner import Place
from raymlops.predictions.paths import label_folder
from raymlops.predictions.spool import encode
from raymlops.storage import clock
from raymlops.storage.store import Namer, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


logger = logging.getLogger("ray.serve.raymlops")

SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("row", pa.int32()),
        ("label", pa.string()),
        ("correction", pa.bool_()),
        ("received", pa.timestamp("us", tz="UTC")),
        ("key_id", pa.string()),
        ("caller", pa.string()),
    ]
)
"""``key_id`` sent the label; it counts for requests of ``caller`` alone, for anybody's where that is null."""
MAX_LABELS = 5000
MAX_LABEL_BYTES = 10_000
MAX_WAITING = 100_000
"""Limit on pending labels; more are rejected."""
MAX_PROBLEMS = 20
CLOSE_S = 5.0
OPEN_S, OPEN_ROWS = 10.0, 1000
"""How long a file grows, and how far: it is encoded and written again as a whole for each label, about 1 ms in all."""
SETTLED_S = 30.0
"""A file that began earlier is not written again, so that others may replace it."""
_MAX_DEPTH = 8
_KEYS = ("request_id", "row", "label", "correction")


class Label(NamedTuple):
    """The true value for one row of one request. ``label`` is JSON text."""

    request_id: str
    row: int
    label: str
    correction: bool = False


def parse_feedback(data: Any, *, kind: LabelType | None = None) -> list[Label]:
    """Read the JSON of a request: ``{"labels": [{"request_id", "row": 0, "label", "correction": false}, ...]}``.

    ``row`` counts the rows of that request from 0. A label is a JSON text, number, boolean or list of these, of the
    model's ``kind``.

    Raises:
        InvalidRowsError: with place and field of the first problems found (at most 20).
    """
    if not isinstance(data, dict) or not isinstance(data.get("labels"), list) or not data["labels"]:
        raise InvalidRowsError([RowProblem(None, "labels", 'expected {"labels": [...]} with at least one label')])
    if unknown := sorted(set(map(str, data)) - {"labels"}):
        raise InvalidRowsError([RowProblem(None, unknown[0][:100], "unknown field; known: labels")])
    entries = data["labels"]
    if len(entries) > MAX_LABELS:
        raise InvalidRowsError([RowProblem(None, "labels", f"got {len(entries)} labels; at most {MAX_LABELS} at once")])
    problems: list[RowProblem] = []
    labels = []
    kind = kind or LabelType()
    for index, entry in enumerate(entries):
        found = _problem(entry)
        if found is None and (why := kind.problem(entry["label"])) is not None:
            found = "label", why
        if found is not None:
            problems.append(RowProblem(index, *found))
            if len(problems) >= MAX_PROBLEMS:
                break
        elif not problems:
            text = json.dumps(entry["label"], separators=(",", ":"))
            labels.append(Label(entry["request_id"], entry.get("row", 0), text, entry.get("correction", False)))
    if problems:
        raise InvalidRowsError(problems)
    return labels


class _OpenFile(NamedTuple):
    """A file that may be replaced by a longer one."""

    uri: str
    path: str
    since: float
    table: pa.Table
    size: int = 0
    """As it was written last."""

    def takes(self, rows: int, *, uri: str, now: float) -> bool:
        """Return whether it may grow by so many rows."""
        return uri == self.uri and 0 <= now - self.since < OPEN_S and self.table.num_rows + rows <= OPEN_ROWS

    def is_in(self, store: Store) -> bool:
        """Return whether it is there: by a clock that is ahead of this one it was finished, and may be replaced."""
        with suppress(StorageError):  # whoever may only write begins another one
            return store.size(self.path) == self.size
        return False


class LabelLog:
    """Stores labels below ``labels/NAME`` of the storage. ``add`` may be called from any thread."""

    def __init__(
        self,
        uri: str,
        *,
        name: str,
        writer: str,
        state: str = "",
        now: Callable[[], float] = clock.now_s,
        open_store: Callable[[str], Store] = Store,
    ) -> None:
        """Take the storage, and the id of the state whose labels they are; empty if unknown."""
        self._uri, self._state = uri, state
        self._place = Place(name, open_store=open_store)
        self._name = name
        self._names = Namer(writer, now=now)
        self._now = now
        self._open_store = open_store
        self._changed = threading.Condition()
        self._waiting: list[tuple[Future[None], pa.Table]] = []
        self._rows = 0
        self._closing = False
        self._file: _OpenFile | None = None
        self._thread: threading.Thread | None = None

    def add(self, labels: Sequence[Label], *, key_id: str | None = None, caller: str | None = None) -> Future[None]:
        """Store labels of a caller's requests, or of anybody's.

        The future is done once they are on the storage, where a kill does not lose them.
        It raises StorageError where the storage fails or too many labels are pending: then none may have been stored,
        and sending them again is safe.
        """
        done: Future[None] = Future()
        table = self._table(labels, key_id, caller)
        with self._changed:
            if self._closing or self._rows + len(labels) > MAX_WAITING:
                why = "the replica shuts down" if self._closing else f"{self._rows} labels are pending"
                done.set_exception(StorageError(f"labels are rejected: {why}", hint="Send them again."))
                return done
            self._waiting.append((done, table))
            self._rows += len(labels)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"labels-{self._name}", daemon=True)
                self._thread.start()
            self._changed.notify()
        return done

    def configure(self, uri: str, *, state: str = "") -> None:
        """Store new labels elsewhere."""
        with self._changed:
            self._uri, self._state = uri, state

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Flush pending labels and reject new ones. Those not written within ``timeout_s`` are rejected and logged."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is None:
            return
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return
        with self._changed:
            waiting, self._waiting, rows, self._rows = self._waiting, [], self._rows, 0
        logger.error(
            "labels: %d lost, not written within %g s of shutdown; those being written may be lost too", rows, timeout_s
        )
        for done, _ in waiting:
            if done.set_running_or_notify_cancel():
                done.set_exception(StorageError("the labels were not written in time", hint="Send them again."))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                waiting, self._waiting, self._rows = self._waiting, [], 0
                if not waiting:
                    return
            self._write([item for item in waiting if item[0].set_running_or_notify_cancel()])

    def _write(self, waiting: Sequence[tuple[Future[None], pa.Table]]) -> None:
        if not waiting:
            return
        try:
            self._append(pa.concat_tables([table for _, table in waiting]))
        except Exception as error:
            if not isinstance(error, StorageError):
                logger.exception("labels could not be written")
            for done, _ in waiting:
                done.set_exception(error)
            return
        for done, _ in waiting:
            done.set_result(None)

    def _append(self, table: pa.Table) -> None:
        """Write labels, with those before them in the file that is open.

        Raises:
            Exception: they may have been written or not. The next ones go into another file.
        """
        now, file = self._now(), self._file
        self._file = None
        uri = self._place.of(self._uri, self._state)
        store = self._open_store(uri)
        if file is None or not file.takes(table.num_rows, uri=uri, now=now) or not file.is_in(store):
            folder = label_folder(self._name, datetime.fromtimestamp(now, UTC))
            file = _OpenFile(uri, f"{folder}/{self._names.next()}", now, table.slice(0, 0))
        longer = pa.concat_tables([file.table, table]).combine_chunks()
        data = encode(longer)
        store.write(file.path, data)
        if not 0 <= self._now() - file.since < SETTLED_S:
            raise StorageError("writing the labels took too long: the file may have been replaced meanwhile")
        self._file = file._replace(table=longer, size=data.size)

    def _table(self, labels: Sequence[Label], key_id: str | None, caller: str | None) -> pa.Table:
        received = round(self._now() * 1e6)
        rows = [{**label._asdict(), "received": received, "key_id": key_id, "caller": caller} for label in labels]
        return pa.Table.from_pylist(rows, schema=SCHEMA)


def _problem(entry: Any) -> tuple[str | None, str] | None:
    """Return the field and message of a label's problem."""
    if not isinstance(entry, dict):
        return None, "expected an object with request_id and label"
    if unknown := sorted(set(map(str, entry)) - set(_KEYS)):
        return unknown[0][:100], f"unknown field; known: {', '.join(_KEYS)}"
    request_id = entry.get("request_id")
    if not isinstance(request_id, str) or not _is_id(request_id):
        return "request_id", "expected the request_id of an answer, 1 to 128 printable ASCII characters"
    row = entry.get("row", 0)
    if type(row) is not int or not 0 <= row < 2**31:
        return "row", "expected the number of a row of that request, counted from 0"
    if type(entry.get("correction", False)) is not bool:
        return "correction", "expected true or false"
    if "label" not in entry:
        return "label", "is missing; expected a text, number, boolean or list"
    if not _is_label(entry["label"]):
        return "label", "expected a text, finite number, boolean or list of these"
    try:
        size = len(json.dumps(entry["label"]))
    except ValueError:  # an integer of thousands of digits
        size = MAX_LABEL_BYTES + 1
    return ("label", f"got more than {MAX_LABEL_BYTES} bytes") if size > MAX_LABEL_BYTES else None


def _is_id(text: str) -> bool:
    return 0 < len(text) <= 128 and text.isascii() and text.isprintable()


def _is_label(value: Any, depth: int = 0) -> bool:
    if isinstance(value, list):
        return depth < _MAX_DEPTH and all(_is_label(item, depth + 1) for item in value)
    if type(value) is float:
        return math.isfinite(value)
    return type(value) in {str, bool, int}
