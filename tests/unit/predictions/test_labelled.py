from datetime import timedelta
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from served_requests import HOUR, at, served

from raymlops.predictions.compact import compact
from raymlops.predictions.labelled import settle
from raymlops.predictions.labels import SCHEMA, Label, LabelLog
from raymlops.predictions.read import read_predictions


def events(*labels):
    """Return labels of one row, in the order they came."""
    rows = [
        ("a", 0, label, correction, HOUR + timedelta(seconds=s), None) for s, (label, correction) in enumerate(labels)
    ]
    return pa.table(list(map(list, zip(*rows, strict=True))), schema=SCHEMA)


@pytest.mark.parametrize(
    ("labels", "stands", "conflicts"),
    [
        ([("1", False)], "1", 0),
        ([("1", False), ("1", False)], "1", 0),
        ([("1", False), ("0", False)], "1", 1),
        ([("1", False), ("0", False), ("0", False)], "1", 1),
        ([("1", False), ("0", True)], "0", 0),
        ([("1", False), ("0", True), ("1", False)], "0", 0),
        ([("1", False), ("0", True), ("2", True)], "2", 0),
        ([("1", False), ("0", True), ("2", False)], "0", 1),
        ([("1", True), ("0", False)], "1", 1),
    ],
    ids=str,
)
def test_one_label_stands(labels, stands, conflicts):
    """The first, or the newest correction; whichever order the files are read in."""
    table = events(*labels)
    for order in (range(len(labels)), reversed(range(len(labels)))):
        settled = settle(table.take(list(order)))
        assert settled.table["label"].to_pylist() == [stands]
        assert settled.conflicts == conflicts


def test_labels_are_found_by_request_and_row():
    """Each row of each request has its own."""
    asked = pa.record_batch({"request_id": ["a", "b", "a", "c"], "row": pa.array([1, 0, 0, 0], pa.int32())})
    rows = [("a", 0, "10", False, HOUR, None), ("a", 1, "11", False, HOUR, None), ("c", 1, "1", False, HOUR, None)]
    settled = settle(pa.table(list(map(list, zip(*rows, strict=True))), schema=SCHEMA))
    assert settled.of(asked).to_pylist() == ["11", None, "10", None]
    assert settle(None).of(asked).to_pylist() == [None] * 4


def test_two_keys_of_one_hash_are_told_apart():
    """The ids themselves are compared: here every key has the hash 0."""
    asked = pa.record_batch({"request_id": ["x", "y", "z"], "row": pa.array([0, 0, 0], pa.int32())})
    rows = [("x", 0, "1", False, HOUR, None), ("y", 0, "2", False, HOUR, None)]
    alike = partial(settle, hashes=lambda ids, _rows: np.zeros(len(ids), np.int64))
    settled = alike(pa.table(list(map(list, zip(*rows, strict=True))), schema=SCHEMA))
    assert settled.of(asked).to_pylist() == ["1", "2", None]


def test_predictions_come_with_their_labels(tmp_path, write):
    """Also those that came a day later, before and after the labels' files were merged."""
    write([served("a", rows=2, ts=at()), served("b", ts=at())])
    for day, labels in ((0, [Label("a", 1, "true")]), (1, [Label("b", 0, "2")]), (1.1, [Label("b", 0, "3")])):
        log = LabelLog(str(tmp_path), name="flights", writer="r", now=(HOUR + timedelta(days=day)).timestamp)
        log.add(labels).result(timeout=30)
        log.close()
    for _ in range(2):
        reading = read_predictions(str(tmp_path), "flights", since=HOUR)
        labels = [value for batch in reading for value in batch["label"].to_pylist()]
        assert labels == [None, "true", "2"]
        assert (reading.labelled, reading.conflicts) == (2, 1)
        compact(str(tmp_path), "flights", now=HOUR + timedelta(days=3))
    assert len(list((tmp_path / "labels/flights/date=2026-11-26").iterdir())) == 1
    (batch,) = read_predictions(str(tmp_path), "flights", labels=False)
    assert "label" not in batch.schema.names
