import json
import threading
from concurrent.futures import wait

import pyarrow.parquet as pq
import pytest
from served_requests import HOUR

from raymlops.errors import InvalidRowsError, StorageError
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
        {"labels": [{"request_id": "a", "label": 1}] * 5001},
    ],
)
def test_what_is_no_feedback_is_refused(data):
    """At most 20 problems are named, and no more labels are taken than allowed."""
    with pytest.raises(InvalidRowsError) as refused:
        parse_feedback(data)
    assert 1 <= len(refused.value.problems) <= 20


def test_a_label_is_on_the_storage_when_its_future_is_done(tmp_path):
    """With who gave it and when it came."""
    log = LabelLog(str(tmp_path), name="flights", writer="replica", now=HOUR.timestamp)
    log.add([Label("a", 0, "1"), Label("b", 3, '"x"', correction=True)], key_id="k1", caller="shop").result(timeout=30)
    (file,) = (tmp_path / "labels/flights/date=2026-11-25").iterdir()
    table = pq.read_table(file, partitioning=None)
    assert table.schema.equals(SCHEMA)
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("a", 0, "1", False, HOUR, "k1", "shop"),
        ("b", 3, '"x"', True, HOUR, "k1", "shop"),
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


def labelled(uri):
    """Return the request ids of each file of labels, in the order of their names."""
    return [pq.read_table(file)["request_id"].to_pylist() for file in sorted(uri.rglob("*.parquet"))]


def test_single_labels_share_a_file_and_are_on_the_storage_once_accepted(tmp_path):
    """The file is replaced by a longer one for ten seconds; then another one begins. None of them waits."""
    clock = [HOUR.timestamp()]
    log = LabelLog(str(tmp_path), name="m", writer="w", now=lambda: clock[0])
    for number in range(12):
        log.add([Label(str(number), 0, "1")]).result(timeout=30)
        assert [one for file in labelled(tmp_path) for one in file] == [str(one) for one in range(number + 1)]
        clock[0] += 1
    log.close()
    assert labelled(tmp_path) == [[str(number) for number in range(10)], ["10", "11"]]


def test_a_file_grows_to_a_thousand_labels(tmp_path):
    """It is written as a whole each time."""
    log = LabelLog(str(tmp_path), name="m", writer="w", now=HOUR.timestamp)
    for _ in range(3):
        log.add([Label("a", row, "1") for row in range(400)]).result(timeout=30)
    log.close()
    assert list(map(len, labelled(tmp_path))) == [800, 400]


def test_a_file_whose_writing_failed_grows_no_more(tmp_path):
    """What was accepted before stays in it, whatever became of that attempt."""

    class Failing(Store):
        def write(self, path, data):
            if failing:
                raise StorageError("away")
            super().write(path, data)

    failing = []
    log = LabelLog(str(tmp_path), name="m", writer="w", now=HOUR.timestamp, open_store=Failing)
    log.add([Label("a", 0, "1")]).result(timeout=30)
    failing.append(True)
    with pytest.raises(StorageError, match="away"):
        log.add([Label("b", 0, "1")]).result(timeout=30)
    failing.clear()
    log.add([Label("c", 0, "1")]).result(timeout=30)
    log.close()
    assert labelled(tmp_path) == [["a"], ["c"]]


def test_who_may_only_write_begins_another_file(tmp_path):
    """Whether the one of before is still there cannot be known."""

    class Unreadable(Store):
        def size(self, path):
            raise StorageError(f"{path} is none of your business")

    log = LabelLog(str(tmp_path), name="m", writer="w", now=HOUR.timestamp, open_store=Unreadable)
    for request_id in "ab":
        log.add([Label(request_id, 0, "1")]).result(timeout=30)
    log.close()
    assert labelled(tmp_path) == [["a"], ["b"]]


def test_labels_whose_writing_took_too_long_are_sent_again(tmp_path):
    """Their file counts as finished after thirty seconds: an erasure may have replaced it without them."""
    clock = [HOUR.timestamp()]

    class Slow(Store):
        def write(self, path, data):
            super().write(path, data)
            clock[0] += slow

    slow = 29
    log = LabelLog(str(tmp_path), name="m", writer="w", now=lambda: clock[0], open_store=Slow)
    log.add([Label("a", 0, "1")]).result(timeout=30)
    slow = 31
    with pytest.raises(StorageError, match="too long"):
        log.add([Label("b", 0, "1")]).result(timeout=30)
    log.close()


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
