import csv
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from served_requests import HOUR, at, served

from raymlops.arrays import Column
from raymlops.errors import StorageError, UsageError
from raymlops.predictions.export.files import write_file
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.read import Reading
from raymlops.signature import Signature

WIDER = Signature(
    inputs=(Column("distance", "float"), Column("bins", "int", shape=(2,)), Column("night", "bool")),
    outputs=(Column("late", "float"),),
)


@pytest.fixture
def two_versions(tmp_path, write):
    """Return storage with a row of version 3 that has a label, and one of version 4, which has other columns."""
    uri = str(tmp_path / "log")
    write([served("a", ts=at())], uri=uri)
    columns = {"distance": np.array([math.inf]), "bins": np.array([[1, 2]]), "night": np.array([True])}
    write([served("b", ts=at(1), version=4, columns=columns)], uri=uri, signature=WIDER)
    log = LabelLog(uri, name="flights", writer="r", now=HOUR.timestamp)
    log.add([Label("a", 0, '["x"]')]).result(timeout=30)
    log.close()
    return uri


def test_json_lines_nest_fields_and_labels(tmp_path, two_versions):
    """Each row has its version's fields alone; infinity, which JSON has not, is null."""
    write_file(Reading(two_versions, "flights"), str(tmp_path / "rows.jsonl"))
    first, second = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert (first["ts"], first["label"]) == ("2026-11-25T12:00:00Z", ["x"])
    assert first["features"] == {"distance": 0.5, "carrier": "AA"}
    assert second["features"] == {"distance": None, "bins": [1, 2], "night": True}
    assert second["label"] is None


def test_csv_has_a_column_for_each_field(tmp_path, two_versions):
    """Of any version; empty for one that has it not."""
    write_file(Reading(two_versions, "flights"), str(tmp_path / "rows.csv"))
    assert (tmp_path / "rows.csv").stat().st_mode & 0o777 == 0o600
    with (tmp_path / "rows.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["ts"], first["features.carrier"], first["features.bins"], first["label"]) == (
        "2026-11-25T12:00:00Z",
        "AA",
        "",
        '["x"]',
    )
    assert (second["features.carrier"], second["features.bins"], second["features.night"]) == ("", "[1,2]", "true")
    assert list(first)[-2:] == ["output.late", "label"]


def test_parquet_has_one_schema(tmp_path, two_versions):
    """That rows of all versions fit."""
    write_file(Reading(two_versions, "flights"), str(tmp_path / "rows.parquet"))
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert rows[0]["features"] == {"distance": 0.5, "carrier": "AA", "bins": None, "night": None}
    assert rows[1]["features"] == {"distance": math.inf, "carrier": None, "bins": [1, 2], "night": True}


def test_an_empty_window_is_an_empty_file(tmp_path, two_versions):
    """With its header, where there is one."""
    for ending in ("jsonl", "csv", "parquet"):
        reading = Reading(two_versions, "flights", since=HOUR.replace(year=2027))
        write_file(reading, str(tmp_path / f"rows.{ending}"))
        assert (tmp_path / f"rows.{ending}").exists()


def test_a_field_of_two_types_is_told(tmp_path, write):
    """No file is left, nor half of one; JSON lines take it."""
    other = Signature(inputs=(Column("distance", "string"),), outputs=(Column("late", "float"),))
    uri = str(tmp_path / "log")
    columns = {"distance": np.array(["far"], dtype=object)}
    write([served("a")], uri=uri)
    write([served("b", version=4, columns=columns)], uri=uri, signature=other)
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"features\.distance is double for one version and string"):
        write_file(Reading(uri, "flights"), str(tmp_path / "out/rows.parquet"))
    assert list((tmp_path / "out").iterdir()) == []
    write_file(Reading(uri, "flights"), str(tmp_path / "out/rows.jsonl"))


def test_what_cannot_be_written_is_told(tmp_path, two_versions):
    """A form that nobody knows, a folder that is not there."""
    with pytest.raises(UsageError, match=r"\.jsonl, \.csv, \.parquet"):
        write_file(Reading(two_versions, "flights"), str(tmp_path / "rows.xlsx"))
    with pytest.raises(StorageError, match="cannot be written"):
        write_file(Reading(two_versions, "flights"), str(tmp_path / "no/rows.csv"))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_field_that_came_after_the_columns_were_read_is_left_out(tmp_path, two_versions, ending):
    """A version may begin to log while the file is written."""

    class Early(Reading):
        def schemas(self):
            yield from list(super().schemas())[:1]

    path = tmp_path / f"rows.{ending}"
    write_file(Early(two_versions, "flights"), str(path))
    if ending == "csv":
        with path.open(newline="") as file:
            ids = [row["request_id"] for row in csv.DictReader(file)]
    else:
        ids = pq.read_table(path)["request_id"].to_pylist()
    assert ids == ["a", "b"]
