import json
import threading
from concurrent.futures import wait

import pyarrow.parquet as pq
import pytest
from served_requests import HOUR

from raymlops.errors import InvalidRowsError, StorageError
from raymlops.predictions import labels
from raymlops.predictions.labels import MAX_WAITING, SCHEMA, Label, LabelLog, parse_feedback
from raymlops.storage.store import Store


def test_feedback_becomes_labels():
    """A row and no correction unless it says so; the label is kept as JSON."""
    data = {
        "labels": [
            {"request_id": "a", "label": True},
            {"request_id": "b", "row": 2, "label": [1, "x"], "correction": True},
        ]
    }
    assert parse_feedback(data) == [Label("a", 0, "true"), Label("b", 2, '[1,"x"]', correction=True)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"request_id": None}, "request_id"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "a\nb"}, "request_id"),
        ({"request_id": "ä"}, "request_id"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"row": -1}, "row"),
        ({"row": True}, "row"),
        ({"row": 0.0}, "row"),
        ({"row": 2**31}, "row"),
        ({"correction": 1}, "correction"),
        ({"label": None}, "label"),
        ({"label": {}}, "label"),
        ({"label": [{}]}, "label"),
        ({"label": float("nan")}, "label"),
        ({"label": [float("inf")]}, "label"),
        ({"label": "x" * 20_000}, "label"),
        ({"label": 10**5000}, "label"),
        ({"label": [[[[[[[[[[1]]]]]]]]]]}, "label"),
        ({"when": 1}, "when"),
    ],
)
def test_what_is_no_label_is_refused_with_its_place(change, field):
    """Nothing of such a request is kept."""
    good = {"request_id": "a", "label": 1}
    with pytest.raises(InvalidRowsError) as refused:
        parse_feedback({"labels": [good, good | change]})
    assert [(problem.row, problem.field) for problem in refused.value.problems] == [(1, field)]


@pytest.mark.parametrize(
    "data",
    [
        *(None, [], {}, {"labels": {}}, {"labels": []}, {"labels": [1]}, {"labels": [{}] * 30}),
        {"labels": [{"request_id": "a", "label": 1}], "name": "flights"},
        {"labels": [{"request_id": "a", "label": 1}] * 31},
    ],
)
def test_what_is_no_feedback_is_refused(data):
    """At most 20 problems are named, and no more labels are taken than allowed."""
    with pytest.raises(InvalidRowsError) as refused:
        parse_feedback(data, max_labels=30)
    assert 1 <= len(refused.value.problems) <= 20


def test_a_label_is_on_the_storage_when_its_future_is_done(tmp_path):
    """With who gave it and when it came."""
    log = LabelLog(str(tmp_path), name="flights", writer="replica", now=HOUR.timestamp)
    log.add([Label("a", 0, "1"), Label("b", 3, '"x"', correction=True)], key_id="k1").result(timeout=30)
    (file,) = (tmp_path / "labels/flights/date=2026-11-25").iterdir()
    table = pq.read_table(file, partitioning=None)
    assert table.schema.equals(SCHEMA)
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("a", 0, "1", False, HOUR, "k1"),
        ("b", 3, '"x"', True, HOUR, "k1"),
    ]
    log.close()


def test_labels_that_come_together_are_one_file(tmp_path):
    """What gathers while a file is written is the next one; closing writes what waits and takes no more."""
    added = threading.Event()

    class Waiting(Store):
        def write(self, path, data):
            added.wait(30)
            super().write(path, data)

    log = LabelLog(str(tmp_path), name="flights", writer="replica", now=HOUR.timestamp, open_store=Waiting)
    done = [log.add([Label(str(number), 0, "1")]) for number in range(200)]
    added.set()
    log.close()
    wait(done, timeout=30)
    assert all(future.exception() is None for future in done)
    files = list((tmp_path / "labels/flights/date=2026-11-25").iterdir())
    assert len(files) <= 2
    assert sum(pq.read_metadata(file).num_rows for file in files) == 200
    with pytest.raises(StorageError, match="shuts down"):
        log.add([Label("late", 0, "1")]).result(timeout=30)


class _NullStore(Store):
    def write(self, path, data):
        """Keep nothing."""


def test_one_label_after_another_does_not_wait_for_a_pause(monkeypatch):
    """Files are limited to ten a second over a minute only: a person who sends labels one by one does not notice."""
    monkeypatch.setattr(labels, "_BURST_S", 5.0)
    clock = [100.0]
    monkeypatch.setattr(labels.time, "monotonic", lambda: clock[0])
    log = LabelLog("/x", name="m", writer="w", open_store=_NullStore)
    pauses = []
    monkeypatch.setattr(log._closed, "wait", pauses.append)
    for _ in range(60):
        log.add([Label("a", 0, "1")]).result(5)
    log.close()
    assert len(pauses) == 60
    assert pauses[:50] == pytest.approx([0.0] * 50)
    assert pauses[51:] == pytest.approx([0.2 + 0.1 * index for index in range(9)])


def test_a_label_that_cannot_be_written_is_not_accepted(s3):
    """Its sender is told and sends it again; the next ones are written once the storage is back."""
    log = LabelLog(s3.uri("bucket"), name="flights", writer="replica")
    s3.refuse = lambda method, _path: method == "PUT"
    with pytest.raises(StorageError):
        log.add([Label("a", 0, "1")]).result(timeout=30)
    s3.refuse = lambda _method, _path: False
    log.add([Label("a", 0, "1")]).result(timeout=30)
    log.close()
    assert len([key for key in s3.objects if key.endswith(".parquet")]) == 1


def test_only_so_many_labels_wait():
    """More are refused at once."""
    log = LabelLog("/nowhere", name="flights", writer="replica")
    log._rows = MAX_WAITING
    with pytest.raises(StorageError, match="labels are pending"):
        log.add([Label("a", 0, "1")]).result(timeout=30)


def test_a_caller_that_left_does_not_stop_the_others(tmp_path):
    """Its label is written or not; theirs are."""

    class Slow(Store):
        def write(self, path, data):
            first.cancel()
            super().write(path, data)

    log = LabelLog(str(tmp_path), name="flights", writer="replica", open_store=Slow)
    first = log.add([Label("a", 0, "1")])
    log.add([Label("b", 0, json.dumps("x"))]).result(timeout=30)
    log.close()


def test_a_storage_that_hangs_does_not_hold_up_the_end(tmp_path, caplog):
    """What waits is refused, so that its senders send it again; it is logged."""
    go_on, began = threading.Event(), threading.Event()

    class Hanging(Store):
        def write(self, path, data):
            began.set()
            go_on.wait(30)
            super().write(path, data)

    log = LabelLog(str(tmp_path), name="flights", writer="replica", open_store=Hanging)
    log.add([Label("a", 0, "1")])
    assert began.wait(30)
    second = log.add([Label("b", 0, "1")])
    log.close(timeout_s=0)
    with pytest.raises(StorageError, match="not written in time"):
        second.result(timeout=0)
    assert "1 lost" in caplog.text
    go_on.set()
    log._thread.join(30)


def test_labels_may_go_elsewhere_from_now_on(tmp_path):
    """Also when the place changes while the one before is opened."""
    opened = []

    class Counting(Store):
        def __init__(self, uri):
            opened.append(uri)
            if len(opened) == 1:
                log.configure(str(tmp_path / "two"))
            super().__init__(uri)

    log = LabelLog(str(tmp_path / "one"), name="flights", writer="replica", open_store=Counting)
    for name in ("a", "b"):
        log.add([Label(name, 0, "1")]).result(timeout=30)
    log.close()
    assert opened == [str(tmp_path / "one"), str(tmp_path / "two")]
    assert list((tmp_path / "two").rglob("*.parquet"))
