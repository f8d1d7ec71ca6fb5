from datetime import timedelta
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from served_requests import HOUR, at, served

from raymlops.predictions.compact import compact
from raymlops.predictions.labelled import load_labels, settle
from raymlops.predictions.labels import SCHEMA, Label, LabelLog
from raymlops.predictions.partition import Faults
from raymlops.predictions.paths import label_folder
from raymlops.predictions.read import Reading
from raymlops.predictions.spool import encode
from raymlops.storage.store import Store


def events(*labels):
    """Return labels of one row, in the order they came."""
    rows = [
        ("a", 0, label, correction, HOUR + timedelta(seconds=s), None, None)
        for s, (label, correction) in enumerate(labels)
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
        corrected = any(correction for _, correction in labels)
        assert settled.contradicted.tolist() == [bool(conflicts) and not corrected]


@pytest.mark.parametrize(
    ("labels", "known_s"),
    [
        ([("1", False), ("1", False)], 0),
        ([("1", False), ("0", False)], 0),
        ([("1", False), ("0", True), ("1", False)], 1),
        ([("1", False), ("0", True), ("0", True)], 1),
        ([("1", False), ("0", False), ("1", True)], 2),
    ],
    ids=str,
)
def test_a_label_is_known_since_it_counts(labels, known_s):
    """A correction is when it comes; the row has had a label since the first one."""
    settled = settle(events(*labels))
    assert settled.known_at.to_pylist() == [HOUR + timedelta(seconds=known_s)]
    assert settled.received.to_pylist() == [HOUR]


def test_labels_are_found_by_request_and_row():
    """Each row of each request has its own."""
    asked = pa.record_batch({"request_id": ["a", "b", "a", "c"], "row": pa.array([1, 0, 0, 0], pa.int32())})
    rows = [
        ("a", 0, "10", False, HOUR, None, None),
        ("a", 1, "11", False, HOUR, None, None),
        ("c", 1, "1", False, HOUR, None, None),
    ]
    settled = settle(pa.table(list(map(list, zip(*rows, strict=True))), schema=SCHEMA))
    assert settled.of(settled.places(asked)).to_pylist() == ["11", None, "10", None]
    nothing = settle(None)
    assert nothing.of(nothing.places(asked)).to_pylist() == [None] * 4


def test_two_keys_of_one_hash_are_told_apart():
    """The ids themselves are compared: here every key has the hash 0."""
    asked = pa.record_batch({"request_id": ["x", "y", "z"], "row": pa.array([0, 0, 0], pa.int32())})
    rows = [("x", 0, "1", False, HOUR, None, None), ("y", 0, "2", False, HOUR, None, None)]
    alike = partial(settle, hashes=lambda ids, _rows: np.zeros(len(ids), np.int64))
    settled = alike(pa.table(list(map(list, zip(*rows, strict=True))), schema=SCHEMA))
    assert settled.of(settled.places(asked)).to_pylist() == ["1", "2", None]


SHOP, BANK, REVIEW = "shop", "bank", None
"""Two callers with requests of their own, and a key for labels alone."""


@pytest.mark.parametrize(
    ("labels", "stands", "conflicts"),
    [
        ([(SHOP, "1"), (BANK, "2")], {SHOP: "1", BANK: "2", "other": None, None: "2"}, 0),
        ([(BANK, "2"), (SHOP, "1"), (SHOP, "3")], {SHOP: "1", BANK: "2", "other": None}, 1),
        ([(SHOP, "1"), (REVIEW, "2")], {SHOP: "1", "other": "2"}, 1),
        ([(REVIEW, "2"), (SHOP, "1")], {SHOP: "2", "other": "2"}, 1),
        ([(SHOP, "1"), (REVIEW, "2", True)], {SHOP: "2", "other": "2"}, 0),
        ([(SHOP, "1"), (BANK, "3", True), (REVIEW, "2", True)], {SHOP: "2", BANK: "2", "other": "2"}, 0),
    ],
    ids=str,
)
def test_a_label_counts_for_who_asked(labels, stands, conflicts):
    """Nobody labels a request of another caller, but a key that labels for all; whichever order they are read in."""
    rows = [
        ("a", 0, label, bool(correction), HOUR + timedelta(seconds=s), None, caller)
        for s, (caller, label, *correction) in enumerate(labels)
    ]
    table = pa.table(list(map(list, zip(*rows, strict=True))), schema=SCHEMA)
    callers = list(stands)
    asked = pa.record_batch(
        {
            "request_id": ["a"] * len(callers),
            "row": pa.array([0] * len(callers), pa.int32()),
            "caller": pa.array(callers, pa.string()),
        }
    )
    for order in (range(len(labels)), reversed(range(len(labels)))):
        settled = settle(table.take(list(order)))
        assert dict(zip(callers, settled.of(settled.places(asked)).to_pylist(), strict=True)) == stands
        assert settled.conflicts == conflicts


def test_labels_of_an_earlier_release_count_for_everybody(tmp_path, write):
    """Their files do not say whose they are; nor do rows of an earlier release say who asked."""
    write([served("a", caller="shop"), served("b", caller="bank"), served("c", caller="bank")])
    old = SCHEMA.remove(SCHEMA.get_field_index("caller"))
    earlier = pa.table([["a"], [0], ["1"], [False], [HOUR], [None]], schema=old)
    Store(str(tmp_path)).write(f"{label_folder('flights', HOUR)}/1-w.parquet", encode(earlier))
    log = LabelLog(str(tmp_path), name="flights", writer="r", now=HOUR.timestamp)
    log.add([Label("b", 0, "2"), Label("c", 0, "3")], caller="shop").result(timeout=30)
    log.close()
    reading = Reading(str(tmp_path), "flights", columns=["request_id"])
    labels = {row["request_id"]: row["label"] for batch in reading for row in batch.to_pylist()}
    assert labels == {"a": "1", "b": None, "c": None}
    assert (reading.labelled, reading.unknown_labels().num_rows) == (1, 2)


def test_predictions_come_with_their_labels(tmp_path, write):
    """Also those that came a day later, before and after the labels' files were merged."""
    write([served("a", rows=2, ts=at()), served("b", ts=at())])
    for day, labels in ((0, [Label("a", 1, "true")]), (1, [Label("b", 0, "2")]), (1.1, [Label("b", 0, "3")])):
        log = LabelLog(str(tmp_path), name="flights", writer="r", now=(HOUR + timedelta(days=day)).timestamp)
        log.add(labels).result(timeout=30)
        log.close()
    for _ in range(2):
        reading = Reading(str(tmp_path), "flights", since=HOUR)
        labels = [value for batch in reading for value in batch["label"].to_pylist()]
        assert labels == [None, "true", "2"]
        assert (reading.labelled, reading.conflicts) == (2, 1)
        compact(str(tmp_path), "flights", now=HOUR + timedelta(days=3))
    assert len(list((tmp_path / "labels/flights/date=2026-11-26").iterdir())) == 1
    (batch,) = Reading(str(tmp_path), "flights", labels=False)
    assert "label" not in batch.schema.names


def test_only_labelled_rows_are_read(tmp_path, write):
    """One of three rows; and where there is no label no file is opened, not even to find that it is damaged."""
    write([served("a", rows=2, ts=at()), served("b", ts=at())])
    (file,) = (tmp_path / "predictions").rglob("*.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    reading = Reading(str(tmp_path), "flights", only_labelled=True)
    assert (list(reading), reading.damaged) == ([], ())
    file.write_bytes(whole)
    send(tmp_path, HOUR, Label("a", 1, "true"))
    (batch,) = Reading(str(tmp_path), "flights", columns=["request_id", "row"], only_labelled=True)
    assert batch.to_pylist() == [{"request_id": "a", "row": 1, "label": "true"}]


def send(uri, moment, *labels):
    """Keep labels that come in at a moment."""
    log = LabelLog(str(uri), name="flights", writer="r", now=moment.timestamp)
    log.add(labels).result(timeout=30)
    log.close()


def test_of_too_many_labels_those_of_a_sample_are_kept(tmp_path):
    """Of 20,000 rows about those that fit, each with the label that stands; the number says one in how many."""
    store = Store(str(tmp_path))
    for start in range(0, 20_000, 5000):
        numbers = range(start, start + 5000)
        send(tmp_path, HOUR, *(Label(f"{number:05}", 0, "0") for number in numbers))
        corrections = [Label(f"{number:05}", 0, str(number % 10), correction=True) for number in numbers]
        send(tmp_path, HOUR + timedelta(seconds=1), *corrections)
    everything = load_labels(store, "flights", Faults(), max_bytes=10_000_000)
    assert (everything.every, len(everything.hashes)) == (1, 20_000)
    few = load_labels(store, "flights", Faults(), max_bytes=400_000)
    assert few.every in {4, 8}  # 40,000 labels of 28 bytes or more in 400,000, or in half of that
    assert 20_000 / few.every * 0.9 < len(few.hashes) < 20_000 / few.every * 1.1
    assert all(row["label"] == row["request_id"][-1] for row in few.table.to_pylist())


def test_labels_that_repeat_leave_nothing_else_out(tmp_path):
    """A row that is labelled 20,000 times, half of them corrections, takes the room of two labels."""
    store = Store(str(tmp_path))
    send(tmp_path, HOUR, Label("a", 0, "1"), Label("b", 0, "2"))
    for seconds in (1, 2, 3, 4):
        flood = [Label("a", 0, str(number), correction=seconds > 2) for number in range(5000)]
        send(tmp_path, HOUR + timedelta(seconds=seconds), *flood)
    kept = load_labels(store, "flights", Faults(), max_bytes=150_000)
    assert kept.every == 1
    assert {row["request_id"]: row["label"] for row in kept.table.to_pylist()} == {"a": "4999", "b": "2"}


def test_labels_from_before_the_window_take_no_room(tmp_path):
    """They cannot be those of its rows, but for clocks that differ by ten minutes."""
    for minutes in (-11, -9, 1):
        send(tmp_path, HOUR + timedelta(minutes=minutes), Label(f"at {minutes}", 0, "1"))
    kept = load_labels(Store(str(tmp_path)), "flights", Faults(), since=HOUR, max_bytes=10_000)
    assert sorted(kept.table["request_id"].to_pylist()) == ["at -9", "at 1"]


@pytest.fixture
def labelled(tmp_path, write):
    """Return storage with answers at 10:30 and 12:10 of one day, and a function that labels them at an hour of it."""
    write([served("a", rows=2, ts=at(30, hour=10)), served("b", ts=at(10), version=4)])

    def label(hour, *labels):
        log = LabelLog(
            str(tmp_path), name="flights", writer=f"w{hour}", now=HOUR.replace(hour=hour, minute=40).timestamp
        )
        log.add(labels).result(timeout=30)
        log.close()

    return str(tmp_path), label


def unknown(uri, **window):
    """Return how many labels of a window match nothing."""
    reading = Reading(uri, "flights", **window)
    for _ in reading:
        pass
    return reading.unknown_labels().num_rows


def test_labels_that_match_no_row_are_counted(labelled):
    """An unknown id, and a row that the request has not; each once, however often it was sent."""
    uri, label = labelled
    label(12, Label("a", 0, "1"), Label("a", 2, "1"), Label("b", 0, "1"), Label("zz", 0, "1"), Label("zz", 0, "2"))
    for window in ({}, {"limit": 1}, {"version": 4}, {"since": HOUR}, {"since": HOUR.replace(minute=30)}):
        assert unknown(uri, **window) == 2
    assert unknown(uri, labels=False) == 0


def test_labels_of_other_times_are_not_called_unknown(labelled):
    """Of rows within a day before the window; and those that came in before or after it are not counted at all."""
    uri, label = labelled
    label(12, Label("a", 0, "1"), Label("b", 0, "1"))
    label(10, Label("x", 0, "1"))
    label(13, Label("y", 0, "1"), Label("x", 0, "1"))
    assert unknown(uri, since=HOUR, until=HOUR + timedelta(hours=1)) == 0
    assert unknown(uri, since=HOUR) == 1
    assert unknown(uri, since=HOUR.replace(hour=10)) == 2
    assert unknown(uri, since=HOUR.replace(hour=10), until=HOUR) == 1
    assert unknown(uri, since=HOUR.replace(minute=39), until=HOUR.replace(minute=41)) == 0


def test_a_label_that_comes_later_than_a_day_is_counted(labelled):
    """Its row is not looked for any further back; the message of the command says since when."""
    uri, label = labelled
    label(12, Label("a", 0, "1"))
    reading = Reading(uri, "flights", since=HOUR)
    assert reading.looked_back_to == HOUR - timedelta(days=1)
    log = LabelLog(uri, name="flights", writer="late", now=(HOUR + timedelta(days=2)).timestamp)
    log.add([Label("b", 0, "1")]).result(timeout=30)
    log.close()
    assert unknown(uri, since=HOUR + timedelta(days=1, hours=12)) == 1
