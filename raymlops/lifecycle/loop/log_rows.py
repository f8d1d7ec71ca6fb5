"""Read the rows of a window of the prediction log that a model may be trained on, the labelled ones with their inputs.

Owns which rows these are, by whomever they were answered: no copies, and of a request id that one caller sent twice the
first answer. Labelled rows are held in memory, of the others a few numbers each.
"""

from __future__ import annotations

from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.errors import DataRefusedError, NotFoundError
from raymlops.monitor.training_rows import LoggedRows
from raymlops.predictions.labelled import key_hashes, load_labels
from raymlops.predictions.partition import Faults
from raymlops.predictions.read import Reading
from raymlops.predictions.schema import FEATURES, schema_of
from raymlops.recipe import ASKED_AT, LABELLED_AT
from raymlops.storage.store import Store

if TYPE_CHECKING:
    import numpy.typing as npt

    from raymlops.arrays import Column
    from raymlops.signature import Signature
    from raymlops.splits import Window

MOST_BYTES = 4 << 30
"""Of labelled rows."""
_COLUMNS = ("request_id", "row", "caller", "ts", "route", "weight", "model_version", "features")
_TIME = pa.timestamp("us")
_LATER = "Shorten retrain.window.days to when it was."
_ELSE = "Or train on your own store: retrain.data: recipe, with datasets(window)."


class LogRows:
    """The rows of a window, read at once."""

    def __init__(self, root: str, name: str, *, signature: Signature, window: Window) -> None:
        """Read them.

        Raises:
            DataRefusedError: the log lacks an input, or there are too many labelled rows.
            StorageError: the storage cannot be read.
        """
        if blind := [column.name for column in signature.inputs if column.info.raw is not None]:
            raise DataRefusedError(
                f"of {', '.join(blind)} the prediction log has the digest alone: nothing can be trained on it",
                hint=_ELSE,
            )
        self._signature = signature
        self._types = {field.name: field.type for field in schema_of(signature).field(FEATURES).type}
        self._faults = Faults()
        self._labels = load_labels(Store(root), name, self._faults, since=window.start, until=window.stop)
        self._received, self._known_at = (
            np.asarray(times.cast(pa.int64())) / 1e6 for times in (self._labels.received, self._labels.known_at)
        )
        self._numbers: list[dict[str, npt.NDArray[Any]]] = []
        self._tables: list[pa.Table] = []
        self._bytes, self._weight = 0, 1.0
        self._versions: set[int] = set()
        self.labels: list[str] = []
        """Of the labelled rows, as JSON."""
        damaged: tuple[str, ...] = ()
        with suppress(NotFoundError):  # nothing was ever logged
            reading = Reading(root, name, since=window.start, until=window.stop, columns=_COLUMNS, labels=False)
            for batch in reading:
                self._add(batch.filter(pc.not_equal(batch["route"], "shadow")))
            damaged = reading.damaged
        self._damaged = sorted({*damaged, *self._faults.damaged})

    def rows(self) -> tuple[LoggedRows, npt.NDArray[np.int64]]:
        """Return each row once, and the place of each among the labelled ones; -1 without a label.

        Which labels are of an unseen class is not known here: of none.
        """
        if not self._numbers:
            none, no = np.empty(0), np.empty(0, np.bool_)
            return LoggedRows(none, none, none, np.empty(0, dtype=object), none, no, no), np.empty(0, np.int64)
        found = {key: np.concatenate([part[key] for part in self._numbers]) for key in self._numbers[0]}
        has = found["has"].astype(np.bool_)
        place = np.where(has, np.cumsum(has) - 1, -1)
        order = np.lexsort((np.arange(len(has)), found["asked"], found["key"]))
        first = np.append(True, np.diff(found["key"][order]) != 0)
        once = np.sort(order[first])
        names = ("asked", "labelled", "known_at", "callers", "drawn", "contradicted")
        columns = (*(found[each] for each in names), has & False)
        return LoggedRows(*(column[once] for column in columns)), place[once]

    def table(self) -> pa.Table:
        """Return the inputs of the labelled rows, and when each was asked and labelled."""
        return pa.concat_tables(self._tables, promote_options="permissive").combine_chunks()

    def notes(self) -> tuple[str, ...]:
        """Return what is to be known of the rows."""
        versions = ", ".join(map(str, sorted(self._versions)))
        said = [f"all rows were answered by version {versions}: what was done with the answers may show in the labels"]
        if self._weight > 1:
            said.append(f"the log is a sample of one in up to {self._weight:g} requests, which train with equal weight")
        if self._damaged:
            said.append(f"damaged and left out: {len(self._damaged)} files, such as {self._damaged[0]}")
        return tuple(said)

    def _add(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        places = self._labels.places(batch)
        has = places >= 0
        labelled, known_at = np.full((2, batch.num_rows), np.nan)
        labelled[has], known_at[has] = self._received[places[has]], self._known_at[places[has]]
        ids, callers = batch["request_id"], pc.fill_null(batch["caller"], "")
        contradicted = np.zeros(batch.num_rows, dtype=np.bool_)
        contradicted[has] = self._labels.contradicted[places[has]]
        drawn = np.zeros(batch.num_rows)
        drawn[has] = [_draw(text) for text in ids.filter(pa.array(has)).to_pylist()]
        asked = np.asarray(batch["ts"].cast(pa.int64()))
        self._numbers.append(
            {
                "asked": asked / 1e6,
                "labelled": labelled,
                "known_at": known_at,
                "callers": np.asarray(callers.to_pylist(), dtype=object),
                "drawn": drawn,
                "key": key_hashes(ids, key_hashes(callers, batch["row"])),
                "has": has,
                "contradicted": contradicted,
            }
        )
        self._versions |= {*batch["model_version"].unique().to_pylist()}
        self._weight = max(self._weight, pc.max(batch["weight"]).as_py() or 1.0)
        if has.any():
            self._keep(batch.filter(pa.array(has)), self._labels.known_at.take(pa.array(places[has])))
            self.labels += self._labels.of(places[has]).to_pylist()

    def _keep(self, batch: pa.RecordBatch, known_at: pa.Array) -> None:
        columns = {column.name: _input(batch, column, self._types[column.name]) for column in self._signature.inputs}
        columns |= {ASKED_AT: batch["ts"].cast(_TIME), LABELLED_AT: known_at.cast(_TIME)}
        table = pa.table(columns)
        self._bytes += table.nbytes
        if self._bytes > MOST_BYTES:
            most = f"{MOST_BYTES >> 30} GiB"
            raise DataRefusedError(
                f"the labelled rows of the window take more than {most}", hint=f"Shorten retrain.window.days. {_ELSE}"
            )
        self._tables.append(table)


def _input(batch: pa.RecordBatch, column: Column, wanted: pa.DataType) -> pa.Array:
    features = batch[FEATURES] if FEATURES in batch.schema.names else None
    if features is None or features.type.get_field_index(column.name) < 0:
        raise DataRefusedError(
            f"the prediction log lacks the input {column.name}: serve.log.redact leaves it out, or a version that "
            "answered did not take it",
            hint=f"{_LATER} {_ELSE}",
        )
    found = pc.struct_field(features, column.name)
    if pa.types.is_floating(wanted) and pa.types.is_integer(found.type):
        found = found.cast(wanted)
    if found.type != wanted:
        raise DataRefusedError(
            f"the prediction log has the input {column.name} as {found.type} where version "
            f"{batch['model_version'][0]} answered; the version that is live takes {wanted}",
            hint=f"{_LATER} {_ELSE}",
        )
    return found.cast(_TIME) if pa.types.is_timestamp(found.type) else found


def _draw(request_id: str) -> float:
    """Return a number from 0 to 1, the same for all rows of a request wherever it is drawn."""
    return int.from_bytes(blake2b(request_id.encode(), digest_size=7).digest(), "big") / 2**56
