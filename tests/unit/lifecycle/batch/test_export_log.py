"""Which days of a log become those of a Delta table."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from served_requests import SIGNATURE, served
from stored import put

from raymlops.config.schema import ProjectSpec
from raymlops.errors import UsageError
from raymlops.lifecycle.batch.export_log import export_log
from raymlops.lifecycle.live.log_owner import claim
from raymlops.lifecycle.prediction_log import ERASE, ERASED, erase_predictions
from raymlops.lifecycle.sources import state_of
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.settings import LogSettings
from raymlops.predictions.where import Where
from raymlops.records import BundleRef, ModelVersionRef
from raymlops.state.database import state_url
from raymlops.state.store import Deployment
from raymlops.state.versions import record_version
from raymlops.storage.delta.names import TableName

DAY = timedelta(days=1)
NOW = datetime.now(UTC)
OLD = (NOW - 20 * DAY).replace(hour=12)


@pytest.fixture
def spec(tmp_path):
    """Return a configuration whose model was asked once, 20 days ago, and keeps its log for 30."""
    data = {"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, "storage": {"path": str(tmp_path / "home")}}
    found = ProjectSpec.model_validate(data, context={"stored": True})
    deploy(found, retention_days=30)
    ask(found, "a", OLD)
    return found


def ask(spec, request_id, at, version=3):
    log = PredictionLog(LogSettings(enabled=True, uri=spec.storage.path), name="m", signature=SIGNATURE, writer="w")
    columns = {"distance": np.ones(1), "carrier": np.array(["AA"], dtype=object)}
    log.take([served(request_id, ts=at.timestamp(), version=version, columns=columns)])
    log.close()


def erase(spec, request_id):
    assert erase_predictions("m", spec, Where.parse([f"request_id={request_id}"]), sleep=lambda _s: None).rows == 1


def lose(spec, request_id):
    """Remove the file that has a request."""
    found = (Path(spec.storage.path) / "predictions").rglob("[!.]*.parquet")
    (path,) = (each for each in found if request_id in pq.read_table(each, partitioning=None)["request_id"].to_pylist())
    path.unlink()


def rows(table):
    return sorted(DeltaTable(table).to_pyarrow_table()["request_id"].to_pylist())


def deploy(spec, *, retention_days):
    bundle = BundleRef(f"{spec.storage.path}/bundles/{'d' * 64}", "d" * 64)
    with state_of(spec) as state:
        put(state, "m", [Deployment("m", 3, bundle, "run", "champion", {"log": {"retention_days": retention_days}})])
        claim(state, "m", [spec.storage.path])


def export(spec, table, *, until=NOW):
    return export_log("m", spec, TableName(str(table)), since=OLD - DAY, until=until)


def test_days_that_the_log_does_not_keep_stay_whatever_the_end(spec, tmp_path):
    """The retention ends at the present, and not at the last day that is asked for."""
    assert export(spec, tmp_path / "t").rows == 1
    deploy(spec, retention_days=10)
    for path in (tmp_path / "home" / "predictions").rglob("*.parquet"):
        path.unlink()
    found = export(spec, tmp_path / "t", until=OLD + 3 * DAY)
    assert (found.days, f"{OLD:%Y-%m-%d}" in found.left) == ((), True)
    assert DeltaTable(tmp_path / "t").to_pyarrow_table().num_rows == 1


def test_a_day_goes_as_far_as_it_was_erased(spec, tmp_path):
    """Rows that the log lost in another way stay, whoever was erased on other days."""
    ask(spec, "b", OLD)
    ask(spec, "c", OLD)
    ask(spec, "other day", OLD + DAY)
    assert export(spec, tmp_path / "t").rows == 4
    erase(spec, "other day")
    erase(spec, "a")
    assert export(spec, tmp_path / "t").rows == 2
    lose(spec, "c")
    assert f"{OLD:%Y-%m-%d}" in export(spec, tmp_path / "t").left
    assert rows(tmp_path / "t") == ["b", "c"]


def test_a_day_of_which_all_was_erased_goes(spec, tmp_path):
    """The export before it knew of it."""
    export(spec, tmp_path / "t")
    erase(spec, "a")
    assert export(spec, tmp_path / "t").left == ()
    assert rows(tmp_path / "t") == []


def test_an_erasure_that_had_not_ended_when_an_export_began_counts(spec, tmp_path):
    """The export read the row that the erasure had found before, and was to remove."""
    ask(spec, "b", OLD)
    with state_of(spec) as state:
        state.record(action=ERASE, subject="m", before={"days": {f"{OLD:%Y-%m-%d}": 1}})
    assert export(spec, tmp_path / "t").rows == 2
    lose(spec, "a")
    with state_of(spec) as state:
        state.record(action=ERASED, subject="m")
    assert export(spec, tmp_path / "t").left == ()
    assert rows(tmp_path / "t") == ["b"]


def test_answers_of_several_versions_to_a_request_are_several_rows(spec, tmp_path):
    """Those of a shadow, which the log lost, stay in the table."""
    ask(spec, "a", OLD, version=4)
    assert export(spec, tmp_path / "t").rows == 2
    (shadow,) = (
        path for path in (Path(spec.storage.path) / "predictions").rglob("[!.]*.parquet") if "version=4" in str(path)
    )
    shadow.unlink()
    assert f"{OLD:%Y-%m-%d}" in export(spec, tmp_path / "t").left
    assert rows(tmp_path / "t") == ["a", "a"]


@pytest.mark.parametrize("old", ["there", "gone"])
def test_the_day_on_which_the_log_was_moved_stays(spec, tmp_path, old):
    """Each storage has a part of it; the days after it are those of the new one."""
    assert export(spec, tmp_path / "t").rows == 1
    home = tmp_path / "home"
    moved = spec.model_copy(
        update={"storage": spec.storage.model_copy(update={"path": str(tmp_path / "new"), "state": state_url(spec)})}
    )
    with state_of(spec) as state:
        ref = ModelVersionRef("m", 4, "run", BundleRef(f"{tmp_path}/new/bundles/{'e' * 64}", "e" * 64), ())
        record_version(state, ref, why="", now=NOW)
        ref = replace(ref, version=3, bundle=BundleRef(f"{home}/bundles/{'d' * 64}", "d" * 64))
        record_version(state, ref, why="", now=NOW)
        claim(state, "m", [moved.storage.path])
    ask(moved, "new-0", OLD + timedelta(hours=1))
    ask(moved, "new-1", OLD + DAY)
    if old == "gone":
        shutil.rmtree(home / "predictions")
    found = export(moved, tmp_path / "t")
    assert (found.days, f"{OLD:%Y-%m-%d}" in found.left) == ((f"{OLD + DAY:%Y-%m-%d}",), True)
    assert rows(tmp_path / "t") == ["a", "new-1"]


@pytest.mark.parametrize("name", ["q3.xlsx", "date=2026-01-01/mine.parquet"])
def test_a_folder_with_files_of_others_becomes_no_table(spec, tmp_path, name):
    """A VACUUM would remove them."""
    (tmp_path / "reports" / name).parent.mkdir(parents=True)
    (tmp_path / "reports" / name).write_text("x")
    with pytest.raises(UsageError, match=rf"holds {name}: a VACUUM of the new table would remove it"):
        export(spec, tmp_path / "reports")
