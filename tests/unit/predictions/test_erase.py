"""One person's rows and labels go, and nothing else does, whenever the erasure is interrupted."""

import contextlib
import io
import shutil
from collections import Counter
from datetime import timedelta
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killed_store import KilledError, Killing
from served_requests import HOUR, at, served

from raymlops.errors import StorageError, UsageError
from raymlops.predictions.compact import compact
from raymlops.predictions.erase import Erasure
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.partition import Faults, left_before, place_after, read_folder
from raymlops.predictions.read import Reading
from raymlops.predictions.where import Where
from raymlops.storage.store import Store

NEXT_DAY = HOUR + timedelta(days=1)
FOLDER = "predictions/flights/version=3/date=2026-11-25/hour=12"
ANNA = Where.parse(["features.carrier=anna"])


def of(request_id, *people, **changes):
    """Return a request with a row for each person, by the only text among the inputs."""
    columns = {"distance": np.arange(len(people)) + 0.5, "carrier": np.array(people, dtype=object)}
    return served(request_id, rows=len(people), columns=columns, **changes)


def label(uri, *request_ids, rows=(0,), now=HOUR):
    log = LabelLog(str(uri), name="flights", writer="replica", now=now.timestamp)
    log.add([Label(request_id, row, '"a label"') for request_id in request_ids for row in rows]).result(timeout=30)
    log.close()


def rows(uri):
    """Return how often each row counts: request id, row, person, label."""
    reading = Reading(str(uri), "flights")
    found = Counter(
        (row["request_id"], row["row"], row["features"]["carrier"], row["label"] is not None)
        for batch in reading
        for row in batch.to_pylist()
    )
    assert reading.damaged == ()
    assert reading.unknown_labels().num_rows == 0
    return found


def texts(uri):
    """Return all texts that are left in any file, whether or not it counts."""
    tables = [pq.read_table(path, columns=["features"]) for path in (uri / "predictions").rglob("*.parquet*")]
    return {text for table in tables for text in table.flatten()["features.carrier"].to_pylist()}


def erase(uri, where=ANNA, *, now=NEXT_DAY, **window):
    return Erasure([str(uri)], "flights", where, **window).run(now=now)


def test_the_rows_of_one_person_go_with_their_labels(tmp_path, write):
    """From files as they were written and from merged ones; a request keeps its rows of others."""
    write([of("a", "anna"), of("b", "bob")], [of("c", "bob", "anna")])
    label(tmp_path, "a", "b")
    label(tmp_path, "c", rows=(0, 1))
    compact(str(tmp_path), "flights", now=HOUR + timedelta(hours=2))
    write([of("d", "anna", ts=at(30)), of("e", "eve", ts=at(31))])
    found = Erasure([str(tmp_path)], "flights", ANNA).find()
    assert (found.rows, found.labels, found.erased, texts(tmp_path)) == (3, 2, False, {"anna", "bob", "eve"})
    record = erase(tmp_path)
    assert (record.rows, record.labels, record.searched, record.unsearched) == (3, 2, 6, 0)
    assert (record.damaged, record.erased, record.fields) == ((), True, ("features.carrier",))
    left = {("b", 0, "bob", True): 1, ("c", 0, "bob", True): 1, ("e", 0, "eve", False): 1}
    assert rows(tmp_path) == left
    assert texts(tmp_path) == {"bob", "eve"}
    again = erase(tmp_path)
    assert (again.rows, again.labels) == (0, 0)
    compact(str(tmp_path), "flights", now=NEXT_DAY + timedelta(hours=1))
    assert rows(tmp_path) == left
    assert len(list((tmp_path / FOLDER).iterdir())) == 1


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_between_any_two_changes_loses_nothing_of_others(tmp_path, write, after):
    """Each row of hers counts once or not at all, every other row once; called again, nothing of hers is left."""
    whole = tmp_path / "whole"
    write([of("a", "anna"), of("b", "bob")], [of("c", "bob", "anna")], uri=str(whole))
    compact(str(whole), "flights", now=HOUR + timedelta(hours=2))
    write([of("d", "anna", "eve", ts=at(30))], [of("e", "anna", ts=at(hour=13))], uri=str(whole))
    label(whole, "a", "b", "c", "d")
    others = {("b", 0, "bob"), ("c", 0, "bob"), ("d", 1, "eve")}
    hers = {("a", 0, "anna"), ("c", 1, "anna"), ("d", 0, "anna"), ("e", 0, "anna")}
    kills = 0
    for at_change in range(100):
        folder = tmp_path / str(at_change)
        shutil.copytree(whole, folder)
        cut = partial(Killing, left=[at_change], after=after)
        with contextlib.suppress(KilledError):
            Erasure([str(folder)], "flights", ANNA, open_store=cut).run(now=NEXT_DAY)
            break
        kills += 1
        reading = Reading(str(folder), "flights", labels=False)
        counted = Counter(
            (row["request_id"], row["row"], row["features"]["carrier"])
            for batch in reading
            for row in batch.to_pylist()
        )
        assert set(counted.values()) == {1}
        assert others <= counted.keys() <= others | hers
        erase(folder)
        assert rows(folder) == {("b", 0, "bob", True): 1, ("c", 0, "bob", True): 1, ("d", 1, "eve", False): 1}
        assert texts(folder) == {"bob", "eve"}
        assert not [path for path in folder.rglob(".*") if path.is_file()]
    assert kills > 8


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_leaves_no_label_of_an_erased_row_in_another_storage(tmp_path, write, after):
    """The model moved twice: labels came in beside the rows of others. Each change of either storage is the last."""
    whole = tmp_path / "whole"
    write([of("a", "anna"), of("b", "bob")], [of("c", "anna", ts=at(hour=13))], uri=str(whole / "old"))
    write([of("d", "anna"), of("e", "eve")], uri=str(whole / "new"))
    label(whole / "new", "a", "c", "e")
    label(whole / "old", "b", "d")
    kills = 0
    for at_change in range(100):
        folder = tmp_path / str(at_change)
        shutil.copytree(whole, folder)
        both = [str(folder / "new"), str(folder / "old")]
        cut = partial(Killing, left=[at_change], after=after)
        with contextlib.suppress(KilledError):
            Erasure(both, "flights", ANNA, open_store=cut).run(now=NEXT_DAY)
            break
        kills += 1
        Erasure(both, "flights", ANNA).run(now=NEXT_DAY)
        assert rows(folder / "old") == {("b", 0, "bob", True): 1}
        assert rows(folder / "new") == {("e", 0, "eve", True): 1}
        assert Erasure(both, "flights", ANNA).find().rows == 0
        assert not [path for path in folder.rglob(".*") if path.is_file()]
    assert kills > 8


def test_what_is_written_meanwhile_is_found_by_the_next_call(tmp_path, write):
    """A row that a replica still held, a label of a row that is gone, and a file that its writer writes once more."""
    write([of("a", "anna"), of("b", "bob")])
    (file,) = (tmp_path / FOLDER).iterdir()
    old = file.read_bytes()
    job = Erasure([str(tmp_path)], "flights", ANNA)
    assert job.run(now=NEXT_DAY).rows == 1
    file.write_bytes(old)
    label(tmp_path, "a", "b")
    write([of("c", "anna", ts=at(30))])
    record = job.run(now=NEXT_DAY, again_since=HOUR)
    assert (record.rows, record.labels) == (1, 1)
    assert rows(tmp_path) == {("b", 0, "bob", True): 1}
    assert texts(tmp_path) == {"bob"}


def test_labels_that_their_writer_may_still_touch_wait(tmp_path, write):
    """Until the file is thirty-five seconds old, with their rows, by which another process still finds them."""
    write([of("a", "anna"), of("b", "anna"), of("c", "bob")])
    label(tmp_path, "a", now=NEXT_DAY)
    first = erase(tmp_path, now=NEXT_DAY + timedelta(seconds=20))
    assert (first.rows, first.labels, first.open_labels) == (1, 0, 1)
    assert rows(tmp_path) == {("a", 0, "anna", True): 1, ("c", 0, "bob", False): 1}
    both = first.then(erase(tmp_path, now=NEXT_DAY + timedelta(seconds=36)))
    assert (both.rows, both.labels, both.open_labels, both.searched) == (2, 1, 0, 3)
    assert rows(tmp_path) == {("c", 0, "bob", False): 1}


def test_labels_of_a_writer_whose_clock_is_behind_are_kept(tmp_path, write):
    """By the clock of the erasure their file is finished a minute before their writer writes to it again."""
    write([of("a", "anna"), of("b", "bob"), of("c", "eve")])
    log = LabelLog(str(tmp_path), name="flights", writer="replica", now=HOUR.timestamp)
    log.add([Label("a", 0, "1"), Label("b", 0, "1")]).result(timeout=30)
    assert erase(tmp_path, now=HOUR + timedelta(minutes=1)).labels == 1
    log.add([Label("c", 0, "1")]).result(timeout=30)
    log.close()
    assert rows(tmp_path) == {("b", 0, "bob", True): 1, ("c", 0, "eve", True): 1}
    files = (tmp_path / "labels").rglob("*.parquet")
    assert {text for file in files for text in pq.read_table(file)["request_id"].to_pylist()} == {"b", "c"}


def test_rows_of_a_window_or_a_key_or_a_request(tmp_path, write):
    """All conditions hold together; of a request also labels whose row is not in the log."""
    write([of("a", "anna", key_id="k1"), of("b", "anna", ts=at(hour=14), key_id="k1"), of("c", "anna", key_id="k2")])
    label(tmp_path, "a", "nowhere")
    assert erase(tmp_path, until=HOUR + timedelta(hours=1), where=Where.parse(["key_id=k2"])).rows == 1
    assert erase(tmp_path, since=HOUR + timedelta(hours=1)).rows == 1
    assert erase(tmp_path, Where.parse(["features.carrier=anna", "key_id=k2"])).rows == 0
    record = erase(tmp_path, Where.parse(["request_id=nowhere"]))
    assert (record.rows, record.labels) == (0, 1)
    assert rows(tmp_path) == {("a", 0, "anna", True): 1}


def test_a_label_of_another_caller_with_the_same_id_stays(tmp_path, write):
    """Both callers count their requests from 1; each one's rows go with its own label."""
    write([of("1", "anna", caller="shop"), of("1", "bob", caller="bank")])
    log = LabelLog(str(tmp_path), name="flights", writer="replica", now=HOUR.timestamp)
    for caller in ("shop", "bank"):
        log.add([Label("1", 0, '"x"')], caller=caller).result(timeout=30)
    log.close()
    record = erase(tmp_path, Where.parse(["caller=shop"]))
    assert (record.rows, record.labels) == (1, 1)
    assert rows(tmp_path) == {("1", 0, "bob", True): 1}


def test_what_cannot_be_searched_is_said(tmp_path, write):
    """Rows whose field was redacted are counted, a damaged file is named; no field of any row is a mistake."""
    write([of("a", "anna")])
    write([of("b", "anna"), of("c", "anna")], redact=("carrier",))
    write([of("d", "anna", ts=at(hour=13))])
    (damaged,) = (tmp_path / FOLDER.replace("hour=12", "hour=13")).iterdir()
    damaged.write_bytes(b"no Parquet")
    record = erase(tmp_path)
    assert (record.rows, record.searched, record.unsearched) == (1, 1, 2)
    assert record.damaged == (str(damaged.relative_to(tmp_path)),)
    for text, said in (("features.carier=anna", "no row has the field"), ("features.distance=anna", "holds double")):
        with pytest.raises(UsageError, match=said):
            erase(tmp_path, Where.parse([text])).check()


@pytest.mark.parametrize("text", ["carrier=anna", "features=anna", "features.=x", "request_id", "request_id.x=1"])
def test_other_conditions_are_refused(text):
    """With the fields that there are."""
    with pytest.raises(UsageError, match="is no condition") as refused:
        Where.parse([text])
    assert "features.NAME" in refused.value.hint


def test_places_count_erased_rows():
    """Of rows 0 to 9 without 0, 3, 4 and 9, against a list of those that are left."""
    erased = [(0, 1), (3, 5), (9, 10)]
    left = [place for place in range(10) if not any(a <= place < b for a, b in erased)]
    assert [left_before(place, erased) for place in range(11)] == [
        sum(one < place for one in left) for place in range(11)
    ]
    assert [place_after(number, erased) for number in range(7)] == [1, 2, 5, 6, 7, 8, 10]


class _Cut(io.BytesIO):
    """A file that is gone after so many bytes, once that is switched on."""

    limit = None

    def read(self, size=-1):
        if self.limit is not None and self.tell() >= self.limit:
            raise FileNotFoundError
        return super().read(size)


def test_a_reader_in_the_middle_of_a_file_continues_in_the_right_place(tmp_path, write):
    """On an object store a file may go while it is read: the rows of others come once each, those read stay read."""
    people = ["anna" if number % 3 else "bob" for number in range(70_000)]
    write([of("a", *people)], [of("b", *people)])
    compact(str(tmp_path), "flights", now=NEXT_DAY)
    (file,) = (tmp_path / FOLDER).iterdir()
    cut = _Cut(file.read_bytes())

    class Vanishing(Store):
        def open(self, path, *, size):
            return cut if path.endswith(file.name) else super().open(path, size=size)

    seen = []
    for number, batch in enumerate(read_folder(Vanishing(str(tmp_path)), FOLDER, Faults())):
        if number == 0:
            erase(tmp_path)
            cut.limit = 0
        names = batch["features"].field("carrier").to_pylist()
        seen += zip(batch["request_id"].to_pylist(), batch["row"].to_pylist(), names, strict=True)
    bobs = [(request, row) for request, row, person in seen if person == "bob"]
    assert bobs == [(request, row) for request in "ab" for row in range(0, 70_000, 3)]
    assert 0 < sum(person == "anna" for *_, person in seen) < 140_000 * 2 / 3


def test_files_of_other_programs_are_named_and_left(tmp_path, write):
    """A copy may hold her rows. Neither it nor a table of somebody else stops an erasure, a compaction or a reader."""
    write([of("a", "anna")], [of("b", "bob")])
    label(tmp_path, "a", "b")
    (labels,) = (tmp_path / "labels/flights").iterdir()
    others = [tmp_path / FOLDER / "part-0000.parquet", tmp_path / FOLDER / "copy.bak", labels / "part-0000.parquet"]
    for path in (*others, tmp_path / FOLDER / ".nfs0001"):
        pq.write_table(pa.table({"x": ["anna"]}), path)

    class Busy(Store):
        def remove(self, path):
            if ".nfs" in path:
                raise StorageError(f"{path} is busy")
            super().remove(path)

    assert compact(str(tmp_path), "flights", now=NEXT_DAY, open_store=Busy).rows == 2
    record = Erasure([str(tmp_path)], "flights", ANNA, open_store=Busy).run(now=NEXT_DAY)
    assert (record.rows, record.labels) == (1, 1)
    assert record.damaged == tuple(sorted(str(path.relative_to(tmp_path)) for path in others))
    assert rows(tmp_path) == {("b", 0, "bob", True): 1}
    assert all(path.exists() for path in others)


def test_rows_of_a_file_that_is_damaged_elsewhere_are_not_counted_as_erased(tmp_path, write):
    """The damage is in a column that no search reads, so that they are found and cannot be rewritten."""
    write([of("a", "anna")])
    write([of("b", "anna", ts=at(hour=13))])
    (file,) = (tmp_path / FOLDER).iterdir()
    group = pq.read_metadata(file).row_group(0)
    (column,) = (group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == "seconds")
    data = bytearray(file.read_bytes())
    data[column.dictionary_page_offset + 20 : column.dictionary_page_offset + 40] = bytes(20)
    file.write_bytes(data)
    record = erase(tmp_path)
    assert (record.rows, record.damaged) == (1, (str(file.relative_to(tmp_path)),))
    assert file.exists()


def test_what_a_killed_writer_had_not_finished_goes_at_once(tmp_path, write):
    """It holds rows of hers that nobody reads. One that still writes it tries again after a second."""
    write([of("a", "anna"), of("b", "bob")])
    (file,) = (tmp_path / FOLDER).iterdir()
    unfinished = file.with_name(f".{file.name}-{'0' * 32}")
    shutil.copy(file, unfinished)
    erase(tmp_path, now=HOUR)
    assert not unfinished.exists()
    assert texts(tmp_path) == {"bob"}


def test_the_forms_of_unicode_of_one_text_are_one(tmp_path, write):
    """A client and an operator may type the accent as one character or two."""
    write([of("a", "Jose\u0301"), of("b", "Jos\u00e9"), of("c", "Jose")])
    for typed in ("Jos\u00e9", "Jose\u0301"):
        assert Erasure([str(tmp_path)], "flights", Where.parse([f"features.carrier={typed}"])).find().rows == 2
