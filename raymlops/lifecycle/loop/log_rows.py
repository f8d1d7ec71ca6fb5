"""Read the rows of a window of the prediction log that a model may be trained on, the labelled ones with their inputs.

Owns what is kept of them: labelled rows are held in memory, of the others a few numbers each. They are rows that were
answered to a caller by any version; which of these count says ``predictions.labelled_rows``.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.errors import DataRefusedError, NotFoundError
from raymlops.predictions.labelled import load_labels
from raymlops.predictions.labelled_rows import COLUMNS, Rows, are_answers, first_answers, rows_of
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
        self._rows: list[Rows] = []
        self._tables: list[pa.Table] = []
        self._bytes, self._weight = 0, 1.0
        self._versions: set[int] = set()
        self.labels: list[str] = []
        """Of the labelled rows, as JSON."""
        damaged: tuple[str, ...] = ()
        with suppress(NotFoundError):  # nothing was ever logged
            reading = Reading(
                root, name, since=window.start, until=window.stop, columns=(*COLUMNS, FEATURES), labels=False
            )
            for batch in reading:
                self._add(batch.filter(pa.array(are_answers(batch))))
            damaged = reading.damaged
        self._damaged = sorted({*damaged, *self._faults.damaged})

    def rows(self) -> tuple[Rows, npt.NDArray[np.int64]]:
        """Return each row once, and the place of each among the labelled ones; -1 without a label."""
        if not self._rows:
            return Rows(), np.empty(0, np.int64)
        rows = Rows.joined(self._rows)
        has, once = rows["places"] >= 0, first_answers(rows)
        return rows.where(once), np.where(has, np.cumsum(has) - 1, -1)[once]

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
        self._rows.append(rows_of(batch, self._labels, places))
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
