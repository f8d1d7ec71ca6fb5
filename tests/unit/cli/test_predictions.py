from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from deltalake import DeltaTable
from served_requests import SIGNATURE, served
from stored import put

from raymlops.cli.main import main
from raymlops.errors import UsageError
from raymlops.lifecycle.prediction_log import parse_moment
from raymlops.lifecycle.sources import state_of, stores_of
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.settings import LogSettings
from raymlops.records import BundleRef
from raymlops.state.store import Deployment
from raymlops.storage import clock

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Return storage with three rows of the last minutes and one of 2 hours ago, which needs no configuration."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    now = datetime.now(UTC)
    ages = {"old": 7200, "a": 30, "b": 20, "c": 10}
    log = PredictionLog(
        LogSettings(enabled=True, uri=str(tmp_path)), name="flights", signature=SIGNATURE, writer="replica"
    )
    for name, age in ages.items():
        log.take([served(name, ts=(now - timedelta(seconds=age)).timestamp(), version=4 if name == "b" else 3)])
    log.close()
    return tmp_path


def test_rows_are_printed_one_object_a_line(log, capsys):
    """Of the last hour unless told otherwise, the oldest first; how many on stderr."""
    assert main(["predictions", "flights"]) == 0
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert sorted(row["request_id"] for row in rows) == ["a", "b", "c"]
    assert rows[0]["features"] == {"distance": 0.5, "carrier": "AA"}
    assert printed.err == "3 rows, 0 with a label\n"


def test_which_time_was_looked_at_is_said_where_there_are_no_rows(log, capsys, monkeypatch, tmp_path):
    """By default the last hour: the log is not empty by that. In a replay it counts back from the replay's clock."""
    clock.set_replay(tmp_path / "clock", NOW.replace(year=2126))
    monkeypatch.setenv(clock.FILE, str(tmp_path / "clock"))
    assert main(["predictions", "flights"]) == 0
    assert capsys.readouterr().err.startswith("0 rows, 0 with a label, since 2126-11-25 11:00 UTC: ")


def test_with_json_all_rows_are_one_object(log, capsys):
    """With the counts and the version of its form."""
    assert main(["predictions", "flights", "--since", "1d", "--limit", "3", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [row["request_id"] for row in data["predictions"]] == ["a", "b", "c"]
    assert (data["schema_version"], data["name"], data["rows"], data["damaged"]) == (1, "flights", 3, [])


def test_a_version_and_a_window_are_chosen(log, capsys):
    """Durations and ISO times alike."""
    until = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert main(["predictions", "flights", "--since", "3h", "--until", until]) == 0
    assert main(["predictions", "flights", "--version", "4"]) == 0
    rows = [json.loads(line)["request_id"] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["old", "b"]


def test_rows_are_written_to_a_file(log, capsys, tmp_path):
    """stdout names it."""
    out = str(tmp_path / "rows.jsonl")
    assert main(["predictions", "flights", "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) | {"since": ""} == {
        "schema_version": 1,
        "out": out,
        "name": "flights",
        "since": "",
        "until": None,
        "rows": 3,
        "labelled": 0,
        "conflicts": 0,
        "unknown": 0,
        "damaged": [],
    }


def test_labels_that_match_nothing_are_told(log, capsys):
    """With the time since when a row was looked for; one for a row of 2 hours ago is no such label."""
    labels = LabelLog(str(log), name="flights", writer="replica")
    labels.add([Label("a", 0, "1"), Label("old", 0, "1"), Label("typo", 0, "1"), Label("a", 9, "1")]).result(timeout=30)
    labels.close()
    assert main(["predictions", "flights", "--since", "2026-01-01"]) == 0
    printed = capsys.readouterr().err
    assert "2 labels that came in within the window match no row logged since 2025-12-31T00:00:00+00:00" in printed
    assert "; such as " in printed
    assert main(["predictions", "flights", "--limit", "1", "--json"]) == 0
    printed = capsys.readouterr()
    data = json.loads(printed.out)
    assert data["unknown"] == 2
    assert sorted((label["request_id"], label["row"]) for label in data["unknown_labels"]) == [("a", 9), ("typo", 0)]
    assert "or an older one" in printed.err


def test_past_hours_are_compacted(log, capsys):
    """By one process at a time, beside those that write."""
    assert main(["predictions", "flights", "--compact", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["damaged"] == []
    assert main(["predictions", "flights", "--compact", "--limit", "3"]) == 2


def test_what_is_too_old_is_removed(log, capsys):
    """Of a model that was never deployed by the configuration's setting, 90 days by default; then there is nothing."""
    old = datetime.now(UTC) - timedelta(days=100)
    written = PredictionLog(
        LogSettings(enabled=True, uri=str(log)), name="flights", signature=SIGNATURE, writer="replica"
    )
    written.take([served("ancient", ts=old.timestamp())])
    written.close()
    assert main(["predictions", "flights", "--retain", "--yes", "--json"]) == 0
    (removed,) = json.loads(capsys.readouterr().out)["removed"]
    assert f"{old:date=%Y-%m-%d/hour=%H}" in removed
    assert main(["audit", "flights", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["events"][0]["action"] == "predictions.retain"
    assert main(["predictions", "flights", "--retain", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == []
    assert main(["predictions", "nothing", "--retain", "--yes"]) == 3


def test_rows_are_found_by_the_value_of_a_field(log, capsys):
    """Since the first row unless a window is given, and the rows that could not be compared are counted."""
    assert main(["predictions", "flights", "--where", "request_id=old", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [row["request_id"] for row in data["predictions"]] == ["old"]
    assert (data["since"], data["rows"], data["unsearched"]) == (None, 1, 0)
    found = ["predictions", "flights", "--where", "features.carrier=AA", "--where", "model_version=4"]
    assert main([*found, "--since", "1h"]) == 0
    assert json.loads(capsys.readouterr().out)["request_id"] == "b"
    assert main(["predictions", "flights", "--where", "features.carier=AA"]) == 2
    assert "no row has the field features.carier" in capsys.readouterr().err


def test_rows_are_erased_by_the_value_of_a_field(log, capsys):
    """With two audit events that name the field and not its value; without --yes it asks, and nothing is changed."""
    labels = LabelLog(str(log), name="flights", writer="replica", now=lambda: datetime.now(UTC).timestamp() - 60)
    labels.add([Label("a", 0, "1"), Label("b", 0, "1")]).result(timeout=30)
    labels.close()
    erase = ["predictions", "flights", "--erase", "--where", "request_id=a"]
    assert main(erase) == 2
    assert "Erase 1 rows and 1 labels of flights?" in capsys.readouterr().err
    assert main([*erase, "--yes", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["rows"], data["labels"], data["erased"], data["damaged"]) == (1, 1, True, [])
    assert main(["predictions", "flights", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert sorted(row["request_id"] for row in data["predictions"]) == ["b", "c"]
    assert (data["labelled"], data["unknown"]) == (1, 0)
    assert main(["audit", "flights", "--json"]) == 0
    before, after = json.loads(capsys.readouterr().out)["events"]
    assert (before["action"], before["before"]["rows"]) == ("predictions.erase", 1)
    left = {"open_labels": 0, "unsearched_rows": 0, "damaged_files": 0}
    counts = {"rows": 1, "days": before["before"]["days"], "labels": 1, **left}
    assert (after["action"], after["after"]) == ("predictions.erased", counts)
    assert list(counts["days"].values()) == [1]
    assert before["why"] == after["why"] == "rows and labels where request_id has a given value"


def test_rows_in_a_storage_that_the_model_left_are_told_of(log, capsys):
    """Erasing covers all storages; a search reads the configured one."""
    bundle = BundleRef(f"{log}/elsewhere/bundles/{'e' * 64}", "e" * 64)
    with state_of(stores_of(None)) as state:
        put(state, "flights", [Deployment("flights", 1, bundle, "run", "champion")])
    assert main(["predictions", "flights", "--where", "request_id=a"]) == 0
    assert "elsewhere" not in capsys.readouterr().err
    (log / "elsewhere/predictions/flights").mkdir(parents=True)
    assert main(["predictions", "flights", "--where", "request_id=a"]) == 0
    assert f"flights also has rows in {log}/elsewhere: read them with storage.path=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fligths"], 3, "Models with predictions: flights"),
        (["flights", "--version", "9"], 3, "Versions with predictions: 3, 4"),
        (["flights", "--since", "yesterday"], 2, "expected a length of time or an ISO time"),
        (["flights", "--since", "1h", "--until", "2h"], 2, "before it begins"),
        (["flights", "--out", "rows.doc"], 2, ".parquet"),
        (["flights", "--limit", "0"], 2, "limit"),
        (["flights", "--erase"], 2, "--erase needs --where"),
        (["flights", "--erase", "--where", "request_id=a", "--version", "3"], 2, "cannot be used with --version"),
        (["flights", "--where", "carrier=AA"], 2, "is no condition"),
        (["fligths", "--erase", "--where", "request_id=a", "--yes"], 3, "Models with predictions: flights"),
    ],
)
def test_mistakes_are_explained(log, capsys, arguments, code, said):
    """With the exit code that says what kind of mistake it is."""
    assert main(["predictions", *arguments]) == code
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1h", NOW - timedelta(hours=1)),
        ("2026-11-24", datetime(2026, 11, 24, tzinfo=UTC)),
        ("2026-11-24T10:30", datetime(2026, 11, 24, 10, 30, tzinfo=UTC)),
        ("2026-11-24T10:30+02:00", datetime(2026, 11, 24, 8, 30, tzinfo=UTC)),
    ],
)
def test_times_are_read(text, moment):
    """Without a zone they are UTC, as everything that is stored."""
    assert parse_moment(text, now=NOW) == moment


def test_a_length_of_time_that_no_calendar_holds_is_told():
    """Rather than a defect."""
    for text in ("999999999d", "9999-12-31T23:00-05:00"):
        with pytest.raises(UsageError, match="is no time"):
            parse_moment(text, now=NOW)


def test_days_that_have_ended_go_to_a_table(log, capsys, monkeypatch, tmp_path):
    """Yesterday's by default, each once however often it is asked; days before the log's retention stay as they are."""
    now, table = datetime.now(UTC), f"{tmp_path}/lake"
    before, tomorrow = now - timedelta(days=1), (now + timedelta(days=1)).replace(hour=12)
    clock.set_replay(tmp_path / "clock", tomorrow)
    monkeypatch.setenv(clock.FILE, str(tmp_path / "clock"))
    for _ in range(2):
        assert main(["predictions", "flights", "--since", "2d", "--out", f"delta+{table}", "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert (data["rows"], data["table"], data["left"]) == (4, table, [])
    found = DeltaTable(table).to_pyarrow_table()["request_id"].to_pylist()
    assert sorted(found) == ["a", "b", "c", "old"]
    with state_of(stores_of(None)) as state:
        bundle = BundleRef(f"{tmp_path}/bundles/{'d' * 64}", "d" * 64)
        put(state, "flights", [Deployment("flights", 3, bundle, "run", "champion", {"log": {"retention_days": 0.5}})])
    assert main(["predictions", "flights", "--since", "2d", "--out", table]) == 0
    printed = capsys.readouterr()
    assert f"that the log lacks and nobody erased: {before:%Y-%m-%d}" in printed.err
    assert DeltaTable(table).count() == 4
    assert main(["predictions", "flights", "--version", "3", "--out", table]) == 2
    assert "A Delta table as --out cannot be used with --version" in capsys.readouterr().err
