from datetime import timedelta

import pyarrow as pa
import pytest
from served_requests import HOUR, SIGNATURE, at, served

from raymlops.arrays import Column
from raymlops.errors import NotFoundError, StorageError, UsageError
from raymlops.predictions.compact import compact
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.partition import Faults, read_folder, survey
from raymlops.predictions.paths import label_folder
from raymlops.predictions.read import Reading
from raymlops.predictions.settings import in_sample
from raymlops.signature import Signature
from raymlops.storage.store import Store

FOLDER = "predictions/flights/version=3/date=2026-11-25/hour=12"
NEXT_DAY = HOUR + timedelta(days=1)


def ids(batches):
    return [value for batch in batches for value in batch["request_id"].to_pylist()]


@pytest.fixture
def day(tmp_path, write):
    """Return storage with a request every 20 minutes from 10:00 to 13:40, by version 3 and at 12:20 by version 4."""
    times = {f"{hour}:{minute:02d}": at(minute, hour=hour) for hour in range(10, 14) for minute in (0, 20, 40)}
    write([served(name, ts=ts, version=4 if name == "12:20" else 3) for name, ts in times.items()])
    return str(tmp_path)


def test_a_window_begins_with_its_first_moment_and_ends_before_its_last(day):
    """Hours outside of it are not opened; those at its edges are cut."""
    reading = Reading(day, "flights", since=HOUR.replace(hour=11, minute=20), until=HOUR.replace(hour=12, minute=40))
    assert [folder.path.rpartition("/date=2026-11-25/")[2] for folder in reading.folders()] == [
        "hour=11",
        "hour=12",
        "hour=12",
    ]
    assert ids(reading) == ["11:20", "11:40", "12:00", "12:20"]
    assert reading.rows == 4


def test_a_time_without_a_zone_is_utc(day):
    """As everything that is stored."""
    assert ids(Reading(day, "flights", since=HOUR.replace(tzinfo=None, hour=13))) == [
        "13:00",
        "13:20",
        "13:40",
    ]


def test_one_version_alone(day):
    """Nothing of the others is looked at."""
    assert ids(Reading(day, "flights", version=4)) == ["12:20"]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
def test_a_limit_gives_the_newest_rows_in_order(day, limit):
    """Over hours and versions alike."""
    everything = sorted(ids(Reading(day, "flights")))
    assert ids(Reading(day, "flights", limit=limit)) == everything[-limit:]


def test_columns_are_chosen_down_to_fields(day):
    """What the window and the labels need is read besides, and not given."""
    (batch, *_) = Reading(day, "flights", columns=["features.carrier", "model_version"], labels=False)
    assert batch.to_pylist()[0] == {"features": {"carrier": "AA"}, "model_version": 3}


def test_wrong_questions_are_told_what_there_is(day):
    """Near names, the versions, the columns."""
    with pytest.raises(NotFoundError, match="Models with predictions: flights"):
        Reading(day, "fligths")
    with pytest.raises(NotFoundError, match="Versions with predictions: 3, 4"):
        Reading(day, "flights", version=5)
    with pytest.raises(UsageError, match="request_id"):
        Reading(day, "flights", columns=["nonsense"])
    with pytest.raises(UsageError, match="before it begins"):
        Reading(day, "flights", since=HOUR, until=HOUR)


def test_a_model_without_rows_is_not_suggested_for_itself(tmp_path):
    """Its folder may be left: retention removed every hour, or a writer made it and was killed."""
    (tmp_path / "predictions" / "flights").mkdir(parents=True)
    with pytest.raises(NotFoundError, match="there are no predictions of 'flights'") as caught:
        Reading(str(tmp_path), "flights")
    assert "flights" not in caught.value.hint


def test_an_empty_window_is_no_error(day):
    """Nothing was asked then."""
    assert list(Reading(day, "flights", since=NEXT_DAY)) == []


def test_foreign_files_and_folders_are_left_alone(tmp_path, write):
    """Of a writer that was cut, and of anybody else."""
    write([served("a")])
    (tmp_path / FOLDER / ".1-x.parquet-123").write_bytes(b"half")
    (tmp_path / FOLDER / "notes.txt").write_text("")
    for name in ("version=new", "version=3/date=today", "version=3/date=2026-11-25/hour=24"):
        (tmp_path / "predictions/flights" / name).mkdir()
    reading = Reading(str(tmp_path), "flights")
    assert ids(reading) == ["a"]
    assert reading.damaged == ()


@pytest.mark.parametrize("read_first", [0, 1, 2, 3])
def test_a_compaction_while_it_is_read_changes_nothing(tmp_path, store, write, read_first):
    """Whatever was read already is not read again from the merged file, twice in a row."""
    write(*([served(f"{n}", rows=2)] for n in range(4)))
    rows = read_folder(store, FOLDER, Faults())
    seen = [next(rows) for _ in range(read_first)]
    compact(str(tmp_path), "flights", now=NEXT_DAY)
    if read_first:
        seen += [next(rows)]
    write([served("late")])
    compact(str(tmp_path), "flights", now=NEXT_DAY)
    seen += rows
    asked = sorted(ids(seen))
    assert [name for name in asked if name != "late"] == [str(n) for n in range(4) for _ in range(2)]


def test_a_listing_that_missed_a_merged_file_is_taken_again(tmp_path, write):
    """A folder is not listed at one moment: what was just replaced and what replaces it can both be missing."""
    write([served("a")], [served("b")])

    class Between:
        """List the folder as it is seen while a compaction works: without the merged file, and with one part gone."""

        def __init__(self, store):
            self._store = store
            self._answers = []

        def files(self, path):
            if not self._answers:
                before = self._store.files(path)
                compact(str(tmp_path), "flights", now=NEXT_DAY)
                self._answers = [dict([*before.items()][1:])]
                return self._answers[0]
            return self._store.files(path)

        def __getattr__(self, name):
            return getattr(self._store, name)

    from raymlops.storage.store import Store

    live, replaced = survey(Between(Store(str(tmp_path))), FOLDER, Faults())
    assert [len(file.sources) for file in live] == [2]
    assert replaced == []


def test_versions_of_other_columns_are_read_together(tmp_path, write):
    """Each in batches of its own schema, also where only the newest are asked for."""
    write([served("a", ts=at(1)), served("c", ts=at(3))])
    other = Signature(inputs=(Column("distance", "string"),), outputs=(Column("late", "bool"),))
    import numpy as np

    columns = {"distance": np.array(["far"], dtype=object)}
    write([served("b", ts=at(2), version=4, columns=columns, outputs={"late": np.array([True])})], signature=other)
    assert sorted(ids(Reading(str(tmp_path), "flights"))) == ["a", "b", "c"]
    batches = list(Reading(str(tmp_path), "flights", limit=3))
    assert ids(batches) == ["a", "b", "c"]
    assert [batch.to_pylist()[0]["output"]["late"] for batch in batches] == [0.0, True, 0.0]


def test_a_storage_that_goes_away_is_no_damage(s3, write):
    """It is told, rather than that rows are missing."""
    uri = s3.uri("bucket/base")
    write([served("a")], [served("b")], uri=uri)
    reading = Reading(uri, "flights")
    s3.refuse = lambda _method, path: path.endswith(".parquet")
    with pytest.raises(StorageError):
        list(reading)
    s3.refuse = lambda _method, _path: False
    assert sorted(ids(reading)) == ["a", "b"]
    assert reading.damaged == ()


def test_an_object_that_is_removed_while_it_is_read_is_looked_for_again(s3, store, write):
    """As a file is."""
    from raymlops.storage.store import Store

    uri = s3.uri("bucket/base")
    write([served("a")], [served("b")], [served("c")], uri=uri)
    rows = read_folder(Store(uri), FOLDER, Faults())
    seen = [next(rows)]
    compact(uri, "flights", now=NEXT_DAY)
    assert ids([*seen, *rows]) == ["a", "b", "c"]


def test_a_schema_is_the_signatures(day):
    """Every batch can be relied on."""
    (batch, *_) = Reading(day, "flights")
    assert batch.schema.field("features").type == pa.struct([("distance", pa.float64()), ("carrier", pa.string())])
    assert [column.name for column in SIGNATURE.outputs] == [field.name for field in batch.schema.field("output").type]
    assert batch.schema.field("ts").type == pa.timestamp("us", "UTC")


def test_a_file_that_grows_while_it_is_read_is_not_damaged(tmp_path):
    """An object store gives as many bytes of the new file as the old one had, which is no Parquet."""

    class Growing(Store):
        def open(self, path, *, size):
            file = super().open(path, size=size)
            if grown:
                return file
            grown.append(label("b"))
            return pa.BufferReader(super().open(path, size=size).read(size))

    def label(request_id):
        return log.add([Label(request_id, 0, "1")]).result(timeout=30)

    grown = []
    log = LabelLog(str(tmp_path), name="flights", writer="replica", now=HOUR.timestamp)
    label("a")
    faults = Faults()
    batches = read_folder(Growing(str(tmp_path)), label_folder("flights", HOUR), faults)
    assert ids(batches) == ["a", "b"]
    assert not faults.damaged
    log.close()


def test_labels_of_requests_that_a_sample_leaves_out_are_not_unknown(tmp_path, write):
    """The log has one request in two: a label of one that was left out is none that matches nothing."""
    names = [str(number) for number in range(40)]
    write([served(name, weight=2.0) for name in names if in_sample(name, 0.5)])
    log = LabelLog(str(tmp_path), name="flights", writer="replica", now=HOUR.timestamp)
    log.add([Label(name, 0, "1") for name in names] + [Label("typo", 0, "1")]).result(timeout=30)
    log.close()
    reading = Reading(str(tmp_path), "flights")
    assert {weight for batch in reading for weight in batch["weight"].to_pylist()} == {2.0}
    assert in_sample("typo", 0.5)
    assert 10 < reading.labelled < 30
    assert reading.unknown_labels().num_rows == 1
    assert reading.unknown_labels(salt=lambda: "another").num_rows > 1


def test_a_sample_is_drawn_by_a_salt_that_callers_do_not_know():
    """Of 1,000 ids that one salt draws, a tenth is drawn by another; without one it is the sample of earlier logs."""
    names = [str(number) for number in range(10_000)]
    chosen = [name for name in names if in_sample(name, 0.1, salt="one")]
    assert 850 < len(chosen) < 1150
    assert 50 < sum(in_sample(name, 0.1, salt="another") for name in chosen) < 150
    assert [name for name in names[:30] if in_sample(name, 0.1)] == ["18", "29"]


def test_a_sample_depends_on_the_id_and_grows_with_its_share():
    """A tenth of 10,000 ids within five standard deviations of 30; all of them are in a larger sample."""
    names = [str(number) for number in range(10_000)]
    small = {name for name in names if in_sample(name, 0.1)}
    assert 850 < len(small) < 1150
    assert small < {name for name in names if in_sample(name, 0.3)}
    assert all(in_sample(name, 1.0) for name in names)
