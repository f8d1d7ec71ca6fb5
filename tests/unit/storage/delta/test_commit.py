"""Files come into a Delta table by one commit, once for each piece of work."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from delta_tables import write
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from killed_at import forked

from raymlops.errors import RefusedError, StorageError, UsageError
from raymlops.storage.delta import commit
from raymlops.storage.delta.commit import NewFile, TableWriter

SCHEMA = pa.schema([("x", pa.int64()), ("note", pa.string())])


def put(path, name, *xs, schema=SCHEMA, partition=None):
    """Write a file where a table has its files, and return what is committed of it."""
    path.mkdir(exist_ok=True)
    pq.write_table(pa.table({"x": list(xs), "note": [None] * len(xs)}, schema=schema), path / name)
    return NewFile(name, (path / name).stat().st_size, len(xs), partition or {})


def rows(path):
    return sorted(DeltaTable(path).to_pyarrow_table()["x"].to_pylist())


def test_the_first_commit_makes_the_table(tmp_path):
    """Its files are seen at once, and what they are is kept with the commit."""
    path = tmp_path / "t"
    files = [put(path, "a.parquet", 1, 2), put(path, "b.parquet", 3)]
    assert TableWriter(str(path), SCHEMA).commit(files, work="one", about={"raymlops.model": "m"}) == 0
    assert rows(path) == [1, 2, 3]
    assert DeltaTable(path).history()[0]["raymlops.model"] == "m"
    assert DeltaTable(path).get_add_actions().num_rows == 2


def test_work_that_is_done_again_is_there_once(tmp_path):
    """A retry finds it, also after other work; the files of the retry are not the table's."""
    path = tmp_path / "t"
    writer = TableWriter(str(path), SCHEMA)
    assert writer.version_with("one") is None
    writer.commit([put(path, "a.parquet", 1)], work="one", about={})
    assert writer.commit([put(path, "b.parquet", 2)], work="two", about={}) == 1
    assert writer.commit([put(path, "c.parquet", 1)], work="one", about={}) == 0
    assert rows(path) == [1, 2]
    assert writer.version_with("one") == 0
    assert writer.version_with("three") is None


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_writers_at_once(tmp_path, monkeypatch, same, there):
    """All looked before one had committed: the same work is there once, and of different ones none is lost."""
    path, barrier, waited = tmp_path / "t", threading.Barrier(8), threading.local()
    if there:
        write(path, {"x": [0], "note": pa.array([None], pa.string())})
    looked = TableWriter._checked

    def look(self):
        found = looked(self)
        if not hasattr(waited, "once"):
            waited.once = True
            barrier.wait(timeout=60)
        return found

    monkeypatch.setattr(TableWriter, "_checked", look)
    files = [put(path, f"{number}.parquet", 1 if same else number) for number in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        options = [{"work": "same" if same else file.path, "about": {}} for file in files]
        done = pool.map(lambda file, given: TableWriter(str(path), SCHEMA).commit([file], **given), files, options)
        versions = list(done)
    assert rows(path) == [0] * there + ([1] if same else list(range(1, 9)))
    assert set(versions) == set(range(there, there + (1 if same else 8)))


def test_a_killed_writer_leaves_no_half_table(tmp_path):
    """Between its files and the commit; the next one is whole."""
    path = tmp_path / "t"

    def killed():
        put(path, "a.parquet", 1)
        put(path, "b.parquet", 2)
        os._exit(9)

    os.waitpid(forked(killed), 0)
    assert not (path / "_delta_log").exists()
    writer = TableWriter(str(path), SCHEMA)
    writer.commit([put(path, "c.parquet", 1), put(path, "d.parquet", 2)], work="one", about={})
    assert rows(path) == [1, 2]


def test_new_rows_take_the_place_of_those_of_their_partition(tmp_path):
    """Again and again, with a column more; other partitions stay."""
    path = tmp_path / "t"
    writer = TableWriter(str(path), SCHEMA.append(pa.field("k", pa.string())), ("k",), replaces=True)
    for name, k, xs in (("a", "one", (1, 2)), ("b", "two", (3,)), ("c", "one", (4,))):
        file = put(path, f"{name}.parquet", *xs, partition={"k": k})
        writer.commit([file], work="w", about={}, partition={"k": k})
    assert rows(path) == [3, 4]
    wider = pa.schema([*SCHEMA, ("more", pa.float64())])
    pq.write_table(pa.table({"x": [5], "note": ["n"], "more": [0.5]}, schema=wider), path / "d.parquet")
    file = NewFile("d.parquet", (path / "d.parquet").stat().st_size, 1, {"k": "two"})
    TableWriter(str(path), wider.append(pa.field("k", pa.string())), ("k",), replaces=True).commit(
        [file], work="w", about={}, partition={"k": "two"}
    )
    found = DeltaTable(path).to_pyarrow_table().sort_by("x").to_pylist()
    assert [(row["x"], row["more"], row["k"]) for row in found] == [(4, None, "one"), (5, 0.5, "two")]
    writer = TableWriter(str(path), wider.append(pa.field("k", pa.string())), ("k",), replaces=True)
    writer.commit([], work="w", about={}, partition={"k": "two"})
    assert rows(path) == [4]


@pytest.mark.parametrize(
    ("there", "options", "message"),
    [
        ({"x": ["text"], "note": ["n"]}, {}, "x is string there, and int64 here"),
        ({"x": [1]}, {}, r"note \(string\) is not there"),
        ({"x": [1], "note": ["n"]}, {"partition_by": ["note"]}, "is partitioned by note; .* not partitioned"),
    ],
)
def test_rows_that_do_not_fit_the_table_are_refused_before(tmp_path, there, options, message):
    """With both sides; a column more of the table is null."""
    write(tmp_path / "t", there, **options)
    with pytest.raises(UsageError, match=message):
        TableWriter(str(tmp_path / "t"), SCHEMA).version_with("one")
    assert DeltaTable(tmp_path / "t").version() == 0
    write(tmp_path / "wider", {"x": [1], "note": ["n"], "more": [2.0]})
    TableWriter(str(tmp_path / "wider"), SCHEMA).commit([put(tmp_path / "wider", "a.parquet", 2)], work="w", about={})
    assert DeltaTable(tmp_path / "wider").to_pyarrow_table().sort_by("x")["more"].to_pylist() == [2.0, None]


def test_a_table_that_checks_its_rows_is_not_written_past_its_checks(tmp_path):
    """Its constraint is named: files are added as they are."""
    write(tmp_path / "t", {"x": [1], "note": ["n"]}).alter.add_constraint({"small": "x < 10"})
    with pytest.raises(UsageError, match=r"what raymlops does not do: delta\.constraints\.small"):
        TableWriter(str(tmp_path / "t"), SCHEMA).version_with("one")


@pytest.mark.parametrize(
    ("key", "value", "replaces"),
    [
        ("delta.setTransactionRetentionDuration", "interval 2 seconds", False),
        ("delta.setTransactionRetentionDuration", "interval 2 seconds", True),
        ("delta.appendOnly", "true", True),
        ("delta.appendOnly", "true", False),
    ],
)
def test_a_table_that_forgets_its_work_or_keeps_all_rows(tmp_path, key, value, replaces):
    """Is not written; one that only takes new rows takes those that replace none."""
    path = tmp_path / "t"
    by = {"partitioned_by": ("k",), "replaces": True} if replaces else {}
    schema = SCHEMA.append(pa.field("k", pa.string())) if replaces else SCHEMA
    writer = TableWriter(str(path), schema, **by)
    partition = {"k": "a"} if replaces else None
    writer.commit([put(path, "a.parquet", 1, partition=partition)], work="w", about={}, partition=partition)
    DeltaTable(path).alter.set_table_properties({key: value})
    if key == "delta.appendOnly" and not replaces:
        assert writer.commit([put(path, "b.parquet", 2)], work="x", about={}) == 2
        return
    with pytest.raises(UsageError, match=f"what raymlops does not do: {key}"):
        writer.commit([put(path, "b.parquet", 2, partition=partition)], work="x", about={}, partition=partition)
    assert rows(path) == [1]


def test_an_error_of_a_commit_that_nobody_was_faster_than_is_told(tmp_path, monkeypatch):
    """At once, as it is."""
    path, tried = tmp_path / "t", []
    write(path, {"x": [1], "note": ["n"]})

    def refused(self, *_, **__):
        tried.append(self)
        raise CommitFailedError("no space left")

    monkeypatch.setattr(TableWriter, "_commit", refused)
    with pytest.raises(StorageError, match="no space left"):
        TableWriter(str(path), SCHEMA).commit([put(path, "a.parquet", 2)], work="w", about={})
    assert len(tried) == 1


@pytest.mark.parametrize("replaces", [False, True])
def test_a_commit_that_was_made_and_is_reported_lost(tmp_path, monkeypatch, replaces):
    """Its rows are there once: the answer of an object store may not arrive."""
    path, real = tmp_path / "t", TableWriter._commit
    schema = SCHEMA.append(pa.field("k", pa.string())) if replaces else SCHEMA
    partition = {"k": "a"} if replaces else None
    writer = TableWriter(str(path), schema, ("k",) if replaces else (), replaces=replaces)
    writer.commit([put(path, "a.parquet", 1, partition=partition)], work="w", about={}, partition=partition)

    def lost(self, *given, **options):
        real(self, *given, **options)
        raise CommitFailedError("the version is there")

    monkeypatch.setattr(TableWriter, "_commit", lost)
    file = put(path, "b.parquet", 2, partition=partition)
    work = "w" if replaces else "x"
    assert writer.commit([file], work=work, about={}, partition=partition) == 1
    assert (DeltaTable(path).version(), rows(path)) == (1, [2] if replaces else [1, 2])


def test_other_work_does_not_replace_rows(tmp_path, monkeypatch):
    """Also where both saw no table: the second finds it in its commit."""
    path, looked, waiting = tmp_path / "t", TableWriter._checked, threading.Barrier(2)
    writer = TableWriter(str(path), SCHEMA.append(pa.field("k", pa.string())), ("k",), replaces=True)
    seen = threading.local()

    def look(self):
        found = looked(self)
        if not hasattr(seen, "once"):
            seen.once = True
            waiting.wait(timeout=60)
        return found

    monkeypatch.setattr(TableWriter, "_checked", look)
    files = {work: put(path, f"{work}.parquet", 1, partition={"k": "a"}) for work in ("one", "two")}

    def commit_one(work):
        try:
            return writer.commit([files[work]], work=work, about={}, partition={"k": "a"})
        except RefusedError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        done = sorted(pool.map(commit_one, files), key=str)
    assert done[0] == 0
    assert "is not an export of this log" in done[1]
    assert rows(path) == [1]


@pytest.mark.parametrize(
    "schema",
    [
        pa.schema([("A", pa.int64()), ("a", pa.int64())]),
        pa.schema([("s", pa.struct([("A", pa.int64()), ("a", pa.int64())]))]),
    ],
)
def test_names_that_differ_by_case_only_are_told(tmp_path, schema):
    """No Delta table has both."""
    with pytest.raises(UsageError, match=r"the columns (s\.)?A and (s\.)?a differ by case only"):
        TableWriter(str(tmp_path / "t"), schema).version_with("one")


def test_a_table_that_changes_meanwhile_is_looked_at_again(tmp_path, monkeypatch):
    """A column that was renamed between the check and the commit refuses it."""
    path = tmp_path / "t"
    write(path, {"x": [1], "note": ["n"]})
    writer, real = TableWriter(str(path), SCHEMA), commit.load_if_there
    loads = []

    def load(name):
        loads.append(name)
        table = real(name)
        if len(loads) == 1:  # what is committed was loaded before the table changed
            write(path, {"x": ["text"], "note": ["n"]}, mode="overwrite", schema_mode="overwrite")
        return table

    monkeypatch.setattr(commit, "load_if_there", load)
    with pytest.raises(UsageError, match="x is string there"):
        writer.commit([put(path, "a.parquet", 2)], work="w", about={})
    assert json.dumps(rows(path)) == '["text"]'


def test_a_type_that_no_table_has_names_its_column(tmp_path):
    """Before any work."""
    with pytest.raises(UsageError, match="the column 'x' is duration"):
        TableWriter(str(tmp_path / "t"), pa.schema([("x", pa.duration("s"))])).version_with("one")


def test_a_table_in_an_object_store(s3):
    """Written and read over the endpoint of the URI."""
    uri = s3.uri("bucket/t")
    from raymlops.storage import filesystem
    from raymlops.storage.delta.names import parse
    from raymlops.storage.delta.snapshot import read_snapshot

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1], "note": ["n"]}, schema=SCHEMA), sink)
    data = sink.getvalue().to_pybytes()
    filesystem.write_bytes(filesystem.join(uri, "a.parquet"), data)
    writer = TableWriter(uri, SCHEMA)
    assert writer.commit([NewFile("a.parquet", len(data), 1)], work="one", about={}) == 0
    assert writer.commit([NewFile("a.parquet", len(data), 1)], work="one", about={}) == 0
    snapshot, (file,) = read_snapshot(parse(uri))
    assert (snapshot.version, filesystem.info(file.uri).size) == (0, len(data))
