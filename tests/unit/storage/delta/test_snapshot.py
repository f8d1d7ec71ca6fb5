"""A version of a Delta table is a list of files, or an error that says what can be read instead."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from delta_tables import add_actions, write
from deltalake import DeltaTable

from raymlops.errors import StorageError, UsageError
from raymlops.storage.delta.names import parse
from raymlops.storage.delta.snapshot import read_snapshot
from raymlops.storage.delta.tables import find_table, name_of, storage_options

FEATURE = "inCommitTimestamp"


@pytest.fixture
def table(tmp_path):
    """A table with a version for each of its three rows."""
    for row in range(3):
        write(tmp_path / "t", {"x": [row]})
    return tmp_path / "t"


def files(text):
    name = find_table(str(text))
    assert name is not None
    return read_snapshot(name)


def test_a_version_has_its_files(table):
    """The newest has all three; each is named so that it is read again."""
    snapshot, found = files(table)
    assert (snapshot.version, snapshot.name, len(found)) == (2, f"{table}@v2", 3)
    assert snapshot.columns.names == ["x"]
    older, first = files(f"{table}@v0")
    assert (older.version, [file.uri for file in first]) == (0, [found[0].uri])


def test_a_time_names_what_was_current_then(table):
    """Not what was written later, and none before the first or to come."""
    for version, hour in enumerate((1, 2, 3)):
        os.utime(table / "_delta_log" / f"{version:020d}.json", (hour * 3600, hour * 3600))
    assert files(f"{table}@1970-01-01T02:30Z")[0].version == 1
    assert files(f"{table}@1970-01-01T03:00Z")[0].version == 2
    soon = datetime.now(UTC) + timedelta(days=1)
    for time in ("1970-01-01T00:30Z", f"{soon:%Y-%m-%d}"):
        with pytest.raises(UsageError, match="its log begins at 1970-01-01 01:00:00 UTC"):
            files(f"{table}@{time}")


@pytest.mark.parametrize("since", [None, 1])
def test_a_copied_table_has_its_versions_of_the_time_before(table, since):
    """Where its commits say their times; those from before they did have the times of their files."""
    for version, day in enumerate((1, 10, 20)):
        path = table / "_delta_log" / f"{version:020d}.json"
        actions = [json.loads(line) for line in path.read_text().splitlines()]
        actions.sort(key=lambda action: "commitInfo" not in action)
        if version >= (since or 0):
            actions[0]["commitInfo"]["inCommitTimestamp"] = int(datetime(2025, 11, day, tzinfo=UTC).timestamp() * 1000)
        for action in actions:
            if "protocol" in action:
                action["protocol"] = {"minReaderVersion": 1, "minWriterVersion": 7} | {"writerFeatures": [FEATURE]}
            if "metaData" in action:
                action["metaData"]["configuration"] = {"delta.enableInCommitTimestamps": "true"} | (
                    {} if since is None else {"delta.inCommitTimestampEnablementVersion": str(since)}
                )
        path.write_text("\n".join(map(json.dumps, actions)))
    assert files(f"{table}@2025-11-15")[0].version == 1
    assert files(f"{table}@2025-11-10")[0].version == 1
    assert files(f"{table}@2025-11-20")[0].version == 2
    if since is None:
        with pytest.raises(UsageError, match="its log begins at 2025-11-01 00:00:00 UTC"):
            files(f"{table}@2025-10-31")
        return
    os.utime(table / "_delta_log" / f"{0:020d}.json", (3600, 3600))
    assert files(f"{table}@2025-10-31")[0].version == 0


def test_what_is_no_table_is_left_to_others(tmp_path):
    """A folder without a log, a file, nothing; named as a table it is refused."""
    (tmp_path / "a.parquet").touch()
    for text in (tmp_path, tmp_path / "a.parquet", tmp_path / "none", tmp_path / "*.parquet"):
        assert find_table(str(text)) is None
    with pytest.raises(UsageError, match="there is no Delta table"):
        files(f"delta+{tmp_path}")


def test_a_version_that_is_not_there_names_those_that_are(table):
    """One to come, and one whose log was cleaned up."""
    with pytest.raises(UsageError, match="has no version 7: its newest is 2"):
        files(f"{table}@v7")
    DeltaTable(table).create_checkpoint()
    for version in (0, 1):
        (table / "_delta_log" / f"{version:020d}.json").unlink()
    assert len(files(table)[1]) == 3
    with pytest.raises(UsageError, match=r"version 0 of .* can no longer be read.*\n.*up to 2"):
        files(f"{table}@v0")


def test_a_damaged_log_is_an_error_of_the_storage(table):
    """Which names the table."""
    (table / "_delta_log" / f"{2:020d}.json").write_text("{")
    with pytest.raises(StorageError, match=f"the Delta table '{table}' cannot be used"):
        files(table)


def test_partitions_are_chosen_by_folders_of_the_name(tmp_path):
    """Values come as text, in the order of the partitions; null is one of them."""
    days = pa.array([date(27), date(26), None], pa.date32())
    write(tmp_path / "t", {"x": [1, 2, 3], "day": days}, partition_by=["day"])
    assert [file.partition for file in files(tmp_path / "t")[1]] == [
        (("day", None),),
        (("day", "2026-11-26"),),
        (("day", "2026-11-27"),),
    ]
    snapshot, (one,) = files(f"{tmp_path}/t@v0/day=2026-11-26")
    assert one.partition == (("day", "2026-11-26"),)
    assert snapshot.name == f"{tmp_path}/t@v0/day=2026-11-26"
    with pytest.raises(UsageError, match=r"a partition by 'x', but the Delta table is partitioned by day"):
        files(f"{tmp_path}/t/x=1")


def date(day):
    return datetime(2026, 11, day, tzinfo=UTC).date()


def test_files_are_found_by_names_that_a_url_would_change(tmp_path):
    """A space, a percent sign and an umlaut in a partition."""
    write(tmp_path / "t", {"x": [1], "k": ["a b%2Fü=c"]}, partition_by=["k"])
    (_, (file,)) = files(tmp_path / "t")
    assert Path(file.uri).read_bytes().startswith(b"PAR1")


def test_a_table_object_is_read_at_its_version(table):
    """As a user of deltalake has it."""
    assert parse(name_of(DeltaTable(table, version=1))).version == 1
    assert files(name_of(DeltaTable(table, version=1)))[0].version == 1
    assert name_of("a path") == "a path"


PROTOCOL = {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, "writerFeatures": []}}


@pytest.mark.parametrize(
    ("feature", "message"), [("deletionVectors", None), ("variantType", "asks of its readers"), ("none", "none")]
)
def test_what_a_reader_must_know_is_refused_by_name(table, feature, message):
    """Deletion vectors may be allowed as long as no file has one."""
    protocol = {**PROTOCOL["protocol"], "readerFeatures": [feature], "writerFeatures": [feature]}
    add_actions(table, {"protocol": protocol})
    if message is None:
        assert len(files(table)[1]) == 3
        return
    with pytest.raises((UsageError, StorageError), match=message):
        files(table)


def test_deltalake_asks_whom_pyarrow_asks(monkeypatch):
    """An endpoint of the URI's query, or else of the environment, over HTTP only where that is said."""
    assert storage_options("s3://b/t?scheme=http&endpoint_override=127.0.0.1%3A9&region=r") == {
        "AWS_REGION": "r",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ALLOW_HTTP": "true",
    }
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://store")
    assert storage_options("s3://b/t") == {"AWS_ENDPOINT_URL": "https://store", "AWS_ALLOW_HTTP": "false"}
    assert storage_options("gs://b/t") == {}


def test_a_table_that_moved_is_another_one(table, tmp_path):
    """Its files are where it is now."""
    shutil.move(table, tmp_path / "moved")
    assert [file.uri.startswith(f"{tmp_path}/moved/") for file in files(tmp_path / "moved")[1]] == [True] * 3
