"""A batch prediction's pieces, without a cluster: how input is cut, what a piece becomes, when output is there."""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlops.arrays import Column
from raymlops.data.parquet.files import GroupReader, list_parquet
from raymlops.errors import InvalidRowsError, NonFiniteError, StorageError, UsageError
from raymlops.images import png_files
from raymlops.lifecycle.batch.chunks import Chunk, Job, plan, write_chunk
from raymlops.lifecycle.batch.files import MANIFEST, input_files, kept_columns, published, refuse_existing
from raymlops.lifecycle.batch.predict import batch_predict
from raymlops.predictions.schema import column_array
from raymlops.records import BundleRef, ModelVersionRef
from raymlops.signature import Signature
from raymlops.storage import filesystem

PIXELS = np.array([[[[7]]], [[[9]]]], dtype=np.uint8)


class Doubler:
    """Doubles ``a``, raises above 1e9, and remembers how many rows each call had."""

    signature = Signature(
        inputs=(Column("a", "float"), Column("k", "int", nullable=True)), outputs=(Column("y", "float"),)
    )

    def __init__(self):
        self.calls = []

    def predict(self, columns):
        self.calls.append(len(columns["a"]))
        if (columns["a"] > 1e9).any():
            msg = "y is inf"
            raise NonFiniteError(msg, hint="Scale it.")
        return {"y": columns["a"] * 2}


@pytest.fixture
def job(tmp_path):
    """Return a factory of jobs on files of these tables, in row groups of three."""

    def make(*tables, batch_rows=2):
        folder = tmp_path / "in"
        folder.mkdir()
        for index, table in enumerate(tables):
            pq.write_table(table, folder / f"{index}.parquet", row_group_size=3)
        files = list_parquet(str(folder))
        version = ModelVersionRef("m", 7, "run", BundleRef("/nowhere", "d"))
        return Job(version, files, kept_columns(files, Doubler.signature, None), str(tmp_path / "out"), batch_rows)

    return make


def ids(*numbers):
    return pa.table({"id": list(numbers), "a": [float(number) for number in numbers]})


def run(job, model=None):
    """Do every chunk of at most two rows, and return the output as a whole."""
    chunks = plan(job.files, chunk_rows=2)
    for chunk in reversed(chunks):
        write_chunk(chunk, job, model=model or Doubler(), reader=GroupReader(job.files))
    return pq.read_table(job.folder)


def test_chunks_cover_every_row_once_and_in_order(job):
    """Row groups of 3 and 1, then 3 and 2, cut at 2: the last of each group is what is left."""
    files = job(ids(*range(4)), ids(*range(4, 9))).files
    assert plan(files, chunk_rows=2) == [
        Chunk(0, group=0, start=0, rows=2, first=0),
        Chunk(1, group=0, start=2, rows=1, first=2),
        Chunk(2, group=1, start=0, rows=1, first=3),
        Chunk(3, group=2, start=0, rows=2, first=0),
        Chunk(4, group=2, start=2, rows=1, first=2),
        Chunk(5, group=3, start=0, rows=2, first=3),
    ]


def test_output_is_in_the_order_of_the_input(job):
    """Whatever order the chunks were done in; ids are kept, inputs are not."""
    table = run(job(ids(*range(4)), ids(*range(4, 9))))
    assert table.column_names == ["id", "y", "model_version"]
    assert table.column("id").to_pylist() == list(range(9))
    assert table.column("y").to_pylist() == [2.0 * number for number in range(9)]
    assert set(table.column("model_version").to_pylist()) == {7}


def test_a_batch_has_at_most_so_many_rows(job):
    """Three rows, two at a time."""
    model = Doubler()
    (chunk,) = plan((wanted := job(ids(1, 2, 3))).files)
    write_chunk(chunk, wanted, model=model, reader=GroupReader(wanted.files))
    assert model.calls == [2, 1]


def test_a_chunk_done_again_is_the_same_file(job):
    """A worker that was lost after it had written costs time alone."""
    wanted = job(ids(1, 2, 3))
    assert run(wanted).equals(run(wanted))


def test_files_of_other_columns_are_brought_together(job):
    """An id that is wider in one file, and a column that another lacks."""
    first = pa.table({"a": [1.0], "id": pa.array([1], pa.int32())})
    second = pa.table({"a": [2.0], "id": pa.array([2**40], pa.int64()), "note": ["x"], "k": [3.0]})
    table = run(job(first, second))
    assert table.select(["id", "note"]).to_pylist() == [{"id": 1, "note": None}, {"id": 2**40, "note": "x"}]


def test_a_row_that_does_not_fit_is_named_by_its_file_and_number(job):
    """Row 4 of the second file, which is the second of its second row group."""
    broken = pa.table({"id": list(range(5)), "a": [0.0, 1.0, 2.0, 3.0, None]})
    with pytest.raises(InvalidRowsError) as caught:
        run(job(ids(1), broken))
    (problem,) = caught.value.problems
    assert (problem.row, problem.field) == (4, "a")
    assert problem.message.endswith("/in/1.parquet")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_decimals_and_days_are_read_as_training_reads_them(job):
    """Money and whole numbers of Spark's tables; a row without one is still named."""
    money = pa.array([Decimal("1.25"), Decimal(2)], pa.decimal128(11, 2))
    whole = pa.table({"a": money, "k": pa.array([Decimal(7), None], pa.decimal128(20, 0))})
    wanted = job(whole, whole.set_column(0, "a", pa.array([Decimal(3), None], pa.decimal128(11, 2))))
    chunks = plan(wanted.files, chunk_rows=2)
    write_chunk(chunks[0], wanted, model=Doubler(), reader=GroupReader(wanted.files))
    assert pq.read_table(wanted.folder)["y"].to_pylist() == [2.5, 4.0]
    with pytest.raises(InvalidRowsError, match=r"row 1, field 'a': must not be null; .*/in/1\.parquet"):
        write_chunk(chunks[1], wanted, model=Doubler(), reader=GroupReader(wanted.files))


def test_a_kept_column_becomes_what_the_output_has(job):
    """Nanoseconds are cut off, within lists too; what cannot be written is named with its file."""
    times = pa.array([[{"t": 1_500}]], pa.list_(pa.struct({"t": pa.timestamp("ns", "UTC")})))
    wanted = job(pa.table({"a": [1.0], "id": ["x"], "times": times}))
    kept = {"times": pa.list_(pa.struct({"t": pa.timestamp("us", "UTC")}))}
    (found,) = run(replace(wanted, keep=kept))["times"].to_pylist()
    assert found[0]["t"].microsecond == 1
    with pytest.raises(UsageError, match=r"column 'id' of .*/in/0\.parquet is string, and cannot be written as int64"):
        run(replace(wanted, keep={"id": pa.int64()}))


def test_a_column_that_a_file_lacks_is_a_row_that_does_not_fit(job, tmp_path):
    """One that no file has is refused before any work, with both sides."""
    with pytest.raises(InvalidRowsError, match=r"field 'a': is missing"):
        run(job(pa.table({"a": [1.0], "id": [1]}), pa.table({"id": [2]})))
    with pytest.raises(UsageError, match=r"no column a, which the model takes\n.*columns: id; the model's: a, k"):
        kept_columns(list_parquet(tmp_path / "in" / "1.parquet"), Doubler.signature, None)


def test_an_answer_that_is_no_number_names_the_rows(job):
    """The model's own advice comes after."""
    with pytest.raises(NonFiniteError) as caught:
        run(job(ids(1, 2, 10**10)))
    assert caught.value.hint.startswith("It failed on rows 2 to 2 of ")
    assert caught.value.hint.endswith("0.parquet. Scale it.")


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        (Column("y", "float"), np.array([1.5, -0.0]), [1.5, -0.0]),
        (Column("y", "float", nullable=True), np.array([1.5, np.nan]), [1.5, None]),
        (Column("y", "int", nullable=True), np.array([3.0, np.nan]), [3, None]),
        (Column("y", "bool"), np.array([True, False]), [True, False]),
        (Column("y", "string", nullable=True), np.array(["a", None], dtype=object), ["a", None]),
        (Column("y", "bytes", nullable=True), np.array([b"a\0", None], dtype=object), [b"a\0", None]),
        (
            Column("y", "datetime", nullable=True),
            np.array(["2026-11-25T12:00:00", "NaT"], dtype="datetime64[us]"),
            [datetime(2026, 11, 25, 12, tzinfo=UTC), None],
        ),
        (Column("y", "image", shape=(1, 1, 1)), PIXELS, png_files(PIXELS)),
        (Column("y", "float", shape=(2,)), np.array([[1.0, 2.0], [3.0, 4.0]]), [[1.0, 2.0], [3.0, 4.0]]),
        (Column("y", "int", shape=(None,)), np.array([np.array([1]), np.array([2, 3])], dtype=object), [[1], [2, 3]]),
    ],
)
def test_outputs_have_the_types_of_the_signature(column, values, expected):
    """And missing ones are null."""
    array = column_array(column, [{"y": values}], rows=len(values))
    assert array.to_pylist() == expected
    types = {"float": pa.float64(), "int": pa.int64(), "bool": pa.bool_(), "string": pa.string()}
    types |= {"bytes": pa.binary(), "datetime": pa.timestamp("us", "UTC"), "image": pa.binary()}
    wanted = types[column.type]
    assert array.type == (pa.list_(wanted) if column.sent_shape else wanted)


@pytest.mark.parametrize(
    ("table", "keep", "message"),
    [
        (pa.table({"a": [1.0], "y": [1.0]}), None, "y would be in the output twice"),
        (pa.table({"a": [1.0], "model_version": [1]}), None, "model_version would be in the output twice"),
        (pa.table({"a": [1.0]}), ["id"], "has no column id"),
    ],
)
def test_columns_that_cannot_be_kept_are_named(tmp_path, table, keep, message):
    """Before any work is done."""
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=message):
        kept_columns(list_parquet(str(tmp_path)), Doubler.signature, keep)


def test_folders_that_are_named_as_an_output_are_said(tmp_path):
    """No file shows where the column is from."""
    (tmp_path / "model_version=3").mkdir()
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "model_version=3" / "a.parquet")
    with pytest.raises(UsageError, match=r"by the names of its folders model_version=\.\.\.\n.*--keep names"):
        kept_columns(list_parquet(str(tmp_path)), Doubler.signature, None)


def test_inputs_are_kept_where_they_are_named(tmp_path):
    """And nothing else then."""
    pq.write_table(pa.table({"a": [1.0], "id": [1]}), tmp_path / "a.parquet")
    assert kept_columns(list_parquet(str(tmp_path)), Doubler.signature, ["a"]) == {"a": pa.float64()}


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    """A text in one, a number in the other."""
    pq.write_table(pa.table({"a": [1.0], "id": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": [1.0], "id": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(UsageError, match="columns of different types"):
        kept_columns(list_parquet(str(tmp_path)), Doubler.signature, None)


@pytest.mark.parametrize("text", ["", "half of it"])
def test_input_that_cannot_be_read_is_named(tmp_path, text):
    """Nothing there, no rows, and bytes that are no Parquet."""
    with pytest.raises(UsageError, match="has no Parquet file"):
        input_files(str(tmp_path))
    pq.write_table(pa.table({"a": pa.array([], pa.float64())}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="has no rows"):
        input_files(str(tmp_path))
    (tmp_path / "a.parquet").write_text(text)
    with pytest.raises(StorageError, match=r"a\.parquet") as caught:
        input_files(str(tmp_path))
    assert "--resume" not in str(caught.value)


def publish(output, *, error=None, meanwhile=None, names=()):
    """Write one part, let ``meanwhile`` happen, and end with an error or without."""
    with published(str(output), names) as folder:
        filesystem.write_bytes(filesystem.join(folder, "part-000000.parquet"), b"x")
        if meanwhile is not None:
            meanwhile()
        if error is not None:
            raise error


def test_output_appears_when_it_is_whole(tmp_path):
    """Until then it lies beside, under a name that readers pass over."""
    out, seen = tmp_path / "out", []
    publish(out, meanwhile=lambda: seen.extend(path.name for path in tmp_path.iterdir()))
    assert [(name[:5], name[-4:]) for name in seen] == [(".out-", ".tmp")]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["part-000000.parquet"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("full")])
def test_nothing_is_left_of_what_failed(tmp_path, error):
    """Interrupted, too."""
    with pytest.raises(type(error)):
        publish(tmp_path / "out", error=error)
    assert list(tmp_path.iterdir()) == []


def test_output_that_appeared_meanwhile_is_not_touched(tmp_path):
    """The other's stays, ours goes."""
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="appeared meanwhile"):
        publish(out, meanwhile=lambda: filesystem.write_bytes(str(out / "theirs"), b"x"))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_an_object_store_keeps_nothing_of_what_failed(s3):
    """It cannot rename: there the manifest, written last, says that output is whole."""
    uri = s3.uri("bucket/out")
    names = ["part-000000.parquet"]
    with pytest.raises(KeyboardInterrupt):
        publish(uri, error=KeyboardInterrupt(), names=names)
    assert filesystem.listing(uri) == {}
    publish(uri, names=names)
    with pytest.raises(UsageError, match="exists, and is incomplete"):
        refuse_existing(uri)
    filesystem.write_bytes(filesystem.join(uri, MANIFEST), b"{}")
    with pytest.raises(UsageError, match=r"exists\n"):
        refuse_existing(uri)


CONFIG = {"project": {"name": "m"}, "recipe": {"import": "any:Recipe"}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output_uri": "."}, "exists"),
        ({"input_uri": "s3://key:word@bucket/in"}, "the input's URI holds a credential"),
        ({"output_uri": "s3://key:word@bucket/out"}, "the output's URI holds a credential"),
        ({"batch_rows": 0}, "batch_rows=0"),
        ({"concurrency": 0}, "concurrency=0"),
    ],
)
def test_what_cannot_be_done_is_refused_first(tmp_path, monkeypatch, given, message):
    """Before MLflow or a cluster is asked for anything."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    options = {"input_uri": "in", "output_uri": "out"} | given
    with pytest.raises(UsageError, match=message) as caught:
        batch_predict(CONFIG, options.pop("input_uri"), options.pop("output_uri"), **options)
    assert "word" not in str(caught.value)
