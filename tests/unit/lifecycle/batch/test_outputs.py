"""A batch prediction becomes one commit of a Delta table, without a cluster."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from delta_tables import write
from deltalake import DeltaTable

from raymlops.data.parquet.files import list_parquet
from raymlops.errors import UsageError
from raymlops.lifecycle.batch.chunks import output_schema, work_of
from raymlops.lifecycle.batch.files import kept_columns
from raymlops.lifecycle.batch.outputs import Folder, output_at
from raymlops.lifecycle.batch.record import BatchRecord
from raymlops.records import BundleRef, ModelVersionRef
from raymlops.signature import Column, Signature
from raymlops.storage.delta.commit import NewFile

SIGNATURE = Signature(inputs=(Column("a", "float"),), outputs=(Column("y", "float"),))
RECORD = BatchRecord("m", 7, "d", "in", "out", rows=2, files=1, duration_s=0.0)
SCHEMA = output_schema(SIGNATURE, {"id": pa.int64()})


def predict(uri, *ids, work="one", error=None):
    """Write rows as workers do, and complete the output."""
    output = output_at(str(uri))
    if (found := output.version_with(lambda: work, SCHEMA)) is not None:
        return found
    name = f"part-000000{output.mark}.parquet"
    with output.writing([name]) as folder:
        Path(folder).mkdir(exist_ok=True)
        table = pa.table({"id": list(ids), "y": [0.5] * len(ids), "model_version": [7] * len(ids)}, schema=SCHEMA)
        pq.write_table(table, f"{folder}/{name}")
        if error is not None:
            raise error
        size = Path(folder, name).stat().st_size
        return output.complete(RECORD, folder, [NewFile(name, size, len(ids))]).table_version


def test_rows_are_added_by_one_commit(tmp_path):
    """Once for each piece of work; the commit says by which model."""
    path = tmp_path / "t"
    assert predict(f"delta+{path}", 1, 2) == 0
    assert predict(path, 1, 2) == 0
    assert predict(path, 3, work="two") == 1
    table = DeltaTable(path)
    assert sorted(table.to_pyarrow_table()["id"].to_pylist()) == [1, 2, 3]
    assert (table.history()[0]["raymlops.name"], table.history()[0]["raymlops.version"]) == ("m", "7")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UsageError("bad row")])
def test_nothing_is_left_of_what_failed(tmp_path, error):
    """Neither in the table nor beside it."""
    path = tmp_path / "t"
    predict(f"delta+{path}", 1)
    before = sorted(path.glob("*.parquet"))
    with pytest.raises(type(error)):
        predict(path, 2, work="two", error=error)
    assert sorted(path.glob("*.parquet")) == before
    assert DeltaTable(path).version() == 0


def test_what_was_committed_is_not_removed(tmp_path):
    """An error of the commit leaves its files, since they may be the table's."""
    path = tmp_path / "t"
    output = output_at(f"delta+{path}")
    output.version_with(lambda: "one", SCHEMA)
    path.mkdir()
    (path / "a.parquet").touch()

    def interrupted():
        with output.writing(["a.parquet"]) as folder:
            output.complete(RECORD, folder, [NewFile("a.parquet", 0, 0)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (path / "a.parquet").exists()


def test_where_rows_cannot_be_added_is_refused_first(tmp_path):
    """A version, a partition, a folder of other files; files of a killed attempt are none."""
    write(tmp_path / "t", {"x": [1]})
    for name in ("t@v0", "t/x=1"):
        with pytest.raises(UsageError, match="is a version or a part"):
            output_at(str(tmp_path / name))
    for name in ("t/out", "delta+{}/t/out"):
        with pytest.raises(UsageError, match=rf"out is in a folder of the Delta table {tmp_path}/t, whose VACUUM"):
            output_at(name.format(tmp_path) if "{" in name else str(tmp_path / name))
    with pytest.raises(UsageError, match="is a version or a part of a Delta table, which is not there"):
        output_at(f"delta+{tmp_path}/new@v2")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "part-000000-0123456789ab.parquet").touch()
    output_at(f"delta+{folder}")
    (folder / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"is no Delta table, and holds notes\.txt"):
        output_at(f"delta+{folder}")
    with pytest.raises(UsageError, match="has other columns"):
        predict(tmp_path / "t", 1)
    assert isinstance(output_at(str(tmp_path / "new")), Folder)


def test_kept_columns_become_types_that_delta_has(tmp_path):
    """Those of pandas: nanoseconds, categories, unsigned numbers."""
    types = {
        pa.timestamp("ns"): pa.timestamp("us"),
        pa.timestamp("ns", "Europe/Berlin"): pa.timestamp("us", "UTC"),
        pa.dictionary(pa.int8(), pa.string()): pa.string(),
        pa.large_string(): pa.string(),
        pa.uint32(): pa.int64(),
        pa.int8(): pa.int8(),
        pa.list_(pa.uint8()): pa.list_(pa.int16()),
        pa.large_list(pa.timestamp("ns")): pa.list_(pa.timestamp("us")),
        pa.struct({"a": pa.list_(pa.uint16())}): pa.struct({"a": pa.list_(pa.int32())}),
    }
    output = output_at(f"delta+{tmp_path}/t")
    others = [pa.list_(pa.uint64()), pa.map_(pa.string(), pa.uint8()), pa.list_(pa.null()), pa.list_view(pa.int8())]
    for kind in (pa.uint64(), *others):
        with pytest.raises(UsageError, match="a Delta table has no column of"):
            output.kept({"a": kind})
    assert list(output.kept({str(kind): kind for kind in types}).values()) == list(types.values())
    folder = output_at(str(tmp_path / "f"))
    assert folder.kept({"a": pa.uint32(), "b": pa.null()}) == {"a": pa.uint32(), "b": pa.null()}


def test_a_column_without_a_value_has_the_type_of_the_table(tmp_path):
    """Text in a new one, which pandas leaves without a type; one that a table lacks is left out."""
    path = tmp_path / "t"
    day = {"id": pa.int64(), "note": pa.null()}
    assert output_at(f"delta+{path}").kept(day) == {"id": pa.int64(), "note": pa.string()}
    nested = {"b": pa.array([{"c": [1], "d": 1}], pa.struct({"c": pa.list_(pa.int32()), "d": pa.int8()}))}
    write(path, {"id": [1], "note": pa.array([1.5]), "all": pa.array([["x"]]), **nested})
    output = output_at(str(path))
    assert output.kept({**day, "other": pa.null()}) == {"id": pa.int64(), "note": pa.float64()}
    empty = {"all": pa.list_(pa.null()), "b": pa.struct({"c": pa.list_(pa.null()), "d": pa.int16()})}
    kept = output.kept(empty)
    assert kept == {"all": pa.list_(pa.string()), "b": pa.struct({"c": pa.list_(pa.int32()), "d": pa.int16()})}
    with pytest.raises(UsageError, match="a Delta table has no column of null, which 'other'"):
        output.kept({"other": pa.list_(pa.null())})


def test_work_is_known_by_its_input_and_its_model(tmp_path):
    """The version of a table counts by its rows, not by its number."""
    path = tmp_path / "t"
    write(path, {"a": [1.0], "id": [1]})
    first = list_parquet(path)
    version = ModelVersionRef("m", 7, "run", BundleRef("/nowhere", "d"))
    one = work_of(version, first, {"id": 1})
    DeltaTable(path).alter.set_table_properties({"delta.logRetentionDuration": "interval 60 days"})
    assert work_of(version, list_parquet(path), {"id": 1}) == one
    assert work_of(version, list_parquet(path), {}) != one
    write(path, {"a": [2.0], "id": [2]})
    assert work_of(version, list_parquet(path), {"id": 1}) != one


def test_rows_of_large_files_that_were_corrected_in_place_are_other_work(tmp_path, monkeypatch):
    """Their digest reads a part of them."""
    monkeypatch.setattr("raymlops.data.parquet.files._BLOCK_BYTES", 1)
    pq.write_table(pa.table({"a": np.arange(50_000.0), "id": np.arange(50_000)}), tmp_path / "a.parquet")
    version = ModelVersionRef("m", 7, "run", BundleRef("/nowhere", "d"))
    before = work_of(version, list_parquet(tmp_path / "a.parquet"), {})
    assert work_of(version, list_parquet(tmp_path / "a.parquet"), {}) == before
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    assert work_of(version, list_parquet(tmp_path / "a.parquet"), {}) != before


def test_a_table_without_an_input_of_the_model(tmp_path):
    """Is refused before any work, with both sides."""
    write(tmp_path / "t", {"b": [1.0], "id": [1]})
    with pytest.raises(UsageError, match=r"no column a, which the model takes\n.*b, id; the model's: a"):
        kept_columns(list_parquet(tmp_path / "t"), SIGNATURE, None)
