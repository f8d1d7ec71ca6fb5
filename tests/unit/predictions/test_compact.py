import contextlib
import shutil
from collections import Counter
from datetime import timedelta
from functools import partial

import pyarrow.parquet as pq
import pytest
from killed_store import KilledError, Killing
from served_requests import HOUR, at, served

from raymlops.predictions.compact import compact, retain
from raymlops.predictions.read import Reading

NEXT_DAY = HOUR + timedelta(days=1)
FOLDER = "predictions/flights/version=3/date=2026-11-25/hour=12"


def found(uri):
    reading = Reading(str(uri), "flights")
    counts = Counter(value for batch in reading for value in batch["request_id"].to_pylist())
    assert reading.damaged == ()
    return counts


def files(uri, folder=FOLDER):
    return sorted(path.name for path in (uri / folder).iterdir())


def numbered(start, stop):
    return [served(str(number), ts=at(number % 50)) for number in range(start, stop)]


def test_many_small_files_become_one(tmp_path, write):
    """In the order of writing; the rows are the same, and a second call has nothing to do."""
    write(*(numbered(n, n + 3) for n in range(0, 12, 3)))
    before = [row for batch in Reading(str(tmp_path), "flights") for row in batch.to_pylist()]
    record = compact(str(tmp_path), "flights", now=NEXT_DAY)
    assert (record.folders, record.merged, record.into, record.rows) == (1, 4, 1, 12)
    assert len(files(tmp_path)) == 1
    assert [row for batch in Reading(str(tmp_path), "flights") for row in batch.to_pylist()] == before
    assert compact(str(tmp_path), "flights", now=NEXT_DAY).merged == 0


def test_an_hour_that_is_not_over_is_left_alone(tmp_path, write):
    """Until five minutes after its end."""
    write(numbered(0, 2), numbered(2, 4))
    assert compact(str(tmp_path), "flights", now=HOUR + timedelta(minutes=64)).merged == 0
    assert compact(str(tmp_path), "flights", now=NEXT_DAY, since=HOUR + timedelta(hours=1)).merged == 0
    assert compact(str(tmp_path), "flights", now=HOUR + timedelta(minutes=65)).merged == 2


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_between_any_two_changes_loses_and_doubles_nothing(tmp_path, write, after):
    """Cut at each change in turn, then with a file that came late at the same change again, then let through."""
    write(*(numbered(n, n + 2) for n in range(0, 10, 2)), uri=str(tmp_path / "whole"))
    kills = 0
    for at_change in range(100):
        folder = tmp_path / str(at_change)
        shutil.copytree(tmp_path / "whole", folder)
        cut = partial(Killing, left=[at_change], after=after)
        for rows in (10, 12):
            with contextlib.suppress(KilledError):
                compact(str(folder), "flights", now=NEXT_DAY, open_store=cut)
                break
            kills += 1
            assert found(folder) == dict.fromkeys(map(str, range(rows)), 1)
            write(numbered(rows, rows + 2), uri=str(folder))
            assert found(folder) == dict.fromkeys(map(str, range(rows + 2)), 1)
        else:
            compact(str(folder), "flights", now=NEXT_DAY)
            assert found(folder) == dict.fromkeys(map(str, range(14)), 1)
            assert len(files(folder)) == 1
            continue
        break
    assert kills > 10


def test_a_file_that_comes_back_does_not_count_twice(tmp_path, write):
    """A writer that never heard that it was written writes it again, however late; a later merging takes it away."""
    write(numbered(0, 2), numbered(2, 4))
    old = {name: (tmp_path / FOLDER / name).read_bytes() for name in files(tmp_path)}
    compact(str(tmp_path), "flights", now=NEXT_DAY)
    write(numbered(4, 6))
    compact(str(tmp_path), "flights", now=NEXT_DAY)
    for name, data in old.items():
        (tmp_path / FOLDER / name).write_bytes(data)
    assert found(tmp_path) == dict.fromkeys("012345", 1)
    compact(str(tmp_path), "flights", now=NEXT_DAY)
    assert len(files(tmp_path)) == 1
    assert found(tmp_path) == dict.fromkeys("012345", 1)


def test_a_damaged_file_is_left_where_it_is(tmp_path, write):
    """The others are merged; damage within the pages is found as well as a missing footer."""
    write(*(numbered(n, n + 2) for n in range(0, 8, 2)))
    first, second, *_ = files(tmp_path)
    (tmp_path / FOLDER / first).write_bytes(b"PAR1 and nothing else")
    data = bytearray((tmp_path / FOLDER / second).read_bytes())
    data[30:60] = bytes(30)
    (tmp_path / FOLDER / second).write_bytes(data)
    record = compact(str(tmp_path), "flights", now=NEXT_DAY)
    assert record.damaged == (f"{FOLDER}/{first}", f"{FOLDER}/{second}")
    assert (record.merged, record.rows) == (2, 4)
    reading = Reading(str(tmp_path), "flights")
    assert [value for batch in reading for value in batch["request_id"].to_pylist()] == list("4567")
    assert reading.damaged == record.damaged


def test_a_merged_file_that_broke_off_does_not_count(tmp_path, write):
    """An upload that was cut is no Parquet file: what it would replace counts, and the next call replaces it."""
    write(numbered(0, 2), numbered(2, 4))
    parts = {name: (tmp_path / FOLDER / name).read_bytes() for name in files(tmp_path)}
    compact(str(tmp_path), "flights", now=NEXT_DAY)
    (merged,) = files(tmp_path)
    whole = (tmp_path / FOLDER / merged).read_bytes()
    (tmp_path / FOLDER / merged).write_bytes(whole[: len(whole) // 2])
    for name, data in parts.items():
        (tmp_path / FOLDER / name).write_bytes(data)
    reading = Reading(str(tmp_path), "flights")
    assert sum(map(len, reading)) == 4
    assert reading.damaged == (f"{FOLDER}/{merged}",)
    compact(str(tmp_path), "flights", now=NEXT_DAY)
    assert files(tmp_path) == [merged]
    assert found(tmp_path) == dict.fromkeys("0123", 1)


def test_what_an_interrupted_writer_left_is_removed_and_what_nfs_keeps_is_not(tmp_path, write):
    """NFS keeps a removed file for whoever still reads it, and refuses to remove that one too."""
    write(numbered(0, 2), numbered(2, 4))
    for name in (".1-writer.parquet-0123", ".nfs0000000000c0ffee"):
        (tmp_path / FOLDER / name).touch()
    assert compact(str(tmp_path), "flights", now=NEXT_DAY).merged == 2
    kept, _merged = files(tmp_path)
    assert kept == ".nfs0000000000c0ffee"


def test_files_of_two_schemas_stay_apart(tmp_path, write):
    """A field was redacted from some moment on."""
    write(numbered(0, 2), numbered(2, 4))
    write(numbered(4, 6), numbered(6, 8), redact=("carrier",))
    record = compact(str(tmp_path), "flights", now=NEXT_DAY)
    assert (record.merged, record.into) == (4, 2)
    schemas = [pq.read_schema(tmp_path / FOLDER / name).field("features").type for name in files(tmp_path)]
    assert [[field.name for field in schema] for schema in schemas] == [["distance", "carrier"], ["distance"]]


def test_old_hours_and_days_go(tmp_path, write):
    """Whole hours alone; a second time there is nothing."""
    write([served("a", ts=at(hour=10)), served("b", ts=at(hour=11)), served("c", ts=at(hour=12))])
    (tmp_path / "labels/flights/date=2026-11-24").mkdir(parents=True)
    before = HOUR.replace(hour=11, minute=59)
    removed = []
    for _ in range(2):
        retain(str(tmp_path), "flights", before=before, removed=removed.append)
        assert removed == ["predictions/flights/version=3/date=2026-11-25/hour=10", "labels/flights/date=2026-11-24"]
    assert set(found(tmp_path)) == {"b", "c"}
    retain(str(tmp_path), "flights", before=NEXT_DAY, removed=removed.append)
    assert len(removed) == 4
    assert not list((tmp_path / "predictions/flights").iterdir())


def test_an_object_store_is_compacted_and_emptied(s3, write):
    """The same, with uploads for files."""
    uri = s3.uri("bucket/base")
    write(numbered(0, 2), numbered(2, 4), uri=uri)
    assert compact(uri, "flights", now=NEXT_DAY).merged == 2
    assert found(uri) == dict.fromkeys("0123", 1)
    assert len([key for key in s3.objects if key.endswith(".parquet")]) == 1
    retain(uri, "flights", before=NEXT_DAY, removed=lambda _path: None)
    assert not [key for key in s3.objects if key.endswith(".parquet")]
