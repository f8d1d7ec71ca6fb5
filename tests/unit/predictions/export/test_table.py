"""Whole days of the log in a Delta table, each once, as the log has it now."""

from datetime import UTC, date, datetime

import numpy as np
import pytest
from delta_tables import write as write_table
from deltalake import DeltaTable
from served_requests import HOUR, at, served

from raymlops.arrays import Column
from raymlops.errors import RefusedError, UsageError
from raymlops.predictions.export.table import days_between, write_day
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.read import Reading
from raymlops.signature import Signature

DAY, NEXT = HOUR.date(), date(2026, 11, 26)
WIDER = Signature(inputs=(Column("distance", "float"), Column("night", "bool")), outputs=(Column("late", "float"),))


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "log")


@pytest.fixture
def export(tmp_path, uri):
    """Return a function that exports a day."""

    def day(which=DAY, *, owner="me", to=tmp_path / "t", erased=0):
        return write_day(Reading(uri, "flights"), which, str(to), owner=owner, erased=erased)

    return day


def rows(tmp_path, column="request_id"):
    return sorted((str(row["date"]), row[column]) for row in DeltaTable(tmp_path / "t").to_pyarrow_table().to_pylist())


def test_a_day_is_there_once_with_the_labels_that_came(tmp_path, uri, write, export):
    """Exported twice, the second time with a row and a label that came late."""
    write([served("a", ts=at()), served("z", ts=at() + 86_400)], uri=uri)
    first = export()
    assert (first.rows, first.labelled, first.table_version) == (1, 0, 0)
    write([served("b", ts=at(1))], uri=uri)
    log = LabelLog(uri, name="flights", writer="r", now=HOUR.timestamp)
    log.add([Label("a", 0, "1")]).result(timeout=30)
    log.close()
    again = export()
    assert (again.rows, again.labelled, again.table_version) == (2, 1, 1)
    assert rows(tmp_path) == [("2026-11-25", "a"), ("2026-11-25", "b")]
    export(NEXT)
    assert rows(tmp_path)[-1] == ("2026-11-26", "z")
    found = DeltaTable(tmp_path / "t").to_pyarrow_table(filters=[("request_id", "=", "a")]).to_pylist()
    assert (found[0]["label"], found[0]["features"]["distance"], found[0]["model_version"]) == ("1", 0.5, 3)


def test_a_version_with_other_columns_widens_the_table(tmp_path, uri, write, export):
    """What days before it had not is null; a narrower day later fits too."""
    write([served("a", ts=at())], uri=uri)
    export()
    columns = {"distance": np.ones(1), "night": np.array([True])}
    write([served("b", ts=at() + 86_400, version=4, columns=columns)], uri=uri, signature=WIDER)
    write([served("c", ts=at() + 2 * 86_400)], uri=uri)
    export(NEXT)
    export(date(2026, 11, 27))
    found = DeltaTable(tmp_path / "t").to_pyarrow_table().sort_by("ts")["features"].to_pylist()
    assert found == [
        {"distance": 0.5, "carrier": "AA", "night": None},
        {"distance": 1.0, "carrier": None, "night": True},
        {"distance": 0.5, "carrier": "AA", "night": None},
    ]


def test_a_column_of_another_type_is_refused(tmp_path, uri, write, export):
    """And the table is as it was."""
    write([served("a", ts=at())], uri=uri)
    export()
    other = Signature(inputs=(Column("distance", "string"),), outputs=(Column("late", "float"),))
    columns = {"distance": np.array(["far"], dtype=object)}
    write([served("b", ts=at() + 86_400, version=4, columns=columns)], uri=uri, signature=other)
    with pytest.raises(UsageError, match=r"features\.distance is double .* string .*\n.*another table"):
        export(NEXT)
    assert rows(tmp_path) == [("2026-11-25", "a")]


def test_an_export_that_is_refused_leaves_no_file(tmp_path, uri, write, export):
    """With all rows of the day, one more each night: of fields that differ by case only, which no table holds."""
    columns = {"Distance": np.ones(1), "distance": np.ones(1)}
    alike = Signature(inputs=tuple(Column(name, "float") for name in columns), outputs=(Column("y", "float"),))
    write([served("a", ts=at(), columns=columns)], uri=uri, signature=alike)
    with pytest.raises(UsageError, match=r"features\.Distance and features\.distance differ by case only"):
        export()
    assert not list((tmp_path / "t").rglob("*.parquet"))


def test_another_log_is_not_replaced(tmp_path, uri, write, export):
    """Another state's, and a table that somebody else wrote."""
    write([served("a", ts=at())], uri=uri)
    export()
    write_table(tmp_path / "other", {"x": [1]})
    for options in ({"owner": "you"}, {"to": tmp_path / "other"}):
        with pytest.raises(RefusedError, match="is not an export of this log"):
            export(**options)
    assert rows(tmp_path) == [("2026-11-25", "a")]


def test_a_damaged_file_leaves_the_day_as_it_is(tmp_path, uri, write, export):
    """It is named, and nothing of the day is lost."""
    write([served("a", ts=at())], uri=uri)
    export()
    (file,) = (tmp_path / "log").rglob("*.parquet")
    file.write_bytes(b"damaged")
    found = export()
    assert (found.table_version, len(found.damaged)) == (None, 1)
    assert rows(tmp_path) == [("2026-11-25", "a")]
    assert len(list((tmp_path / "t").rglob("date=*/*.parquet"))) == 1


def test_a_day_without_rows(tmp_path, uri, write, export):
    """Makes no table and no commit; one whose rows were erased goes, and one that the log lost stays."""
    write([served("a", ts=at())], uri=uri)
    assert export(NEXT).table_version is None
    assert not (tmp_path / "t" / "_delta_log").exists()
    export()
    write([served("keeps the model's log", ts=at() + 5 * 86_400)], uri=uri)
    (file,) = (path for path in (tmp_path / "log").rglob("*.parquet") if "2026-11-25" in str(path))
    file.unlink()
    found = export()
    assert (found.table_version, found.left, len(rows(tmp_path))) == (None, True, 1)
    assert export(erased=1).rows == 0
    assert rows(tmp_path) == []


def test_days_are_those_that_have_ended():
    """From that of the first time, not that of the last."""
    since, until = datetime(2026, 11, 25, 23, tzinfo=UTC), datetime(2026, 11, 27, 1, tzinfo=UTC)
    assert days_between(since, until) == [DAY, NEXT]
    assert days_between(until, until) == []
