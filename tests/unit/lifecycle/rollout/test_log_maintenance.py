"""The hourly look after the logs of live models, on files written by a prediction log."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Event

import numpy as np
import pytest
from stored import put

from raymlops.arrays import Column
from raymlops.errors import StorageError
from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.read import Reading
from raymlops.predictions.rewrite import FencedStore
from raymlops.predictions.served import RequestRecord
from raymlops.predictions.settings import LogSettings
from raymlops.records import BundleRef, ModelVersionRef
from raymlops.signature import Signature
from raymlops.state.store import Deployment, State
from raymlops.state.versions import record_version

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SIGNATURE = Signature((Column("x", "float"),), (Column("p", "float"),))


@pytest.fixture
def state(state, tmp_path):
    """Return a state in which version 1 is live, with its bundle under the folder that the log is in."""
    bundle = BundleRef(f"{tmp_path}/bundles/{'d' * 64}", "d" * 64)
    put(state, "m", [Deployment("m", 1, bundle, "run", "champion", {"log": {"retention_days": 10.0}})])
    return state


def write(tmp_path, moment, number, *, name="m"):
    """Let a log write one request as a file of its own."""
    log = PredictionLog(
        LogSettings(enabled=True, uri=str(tmp_path)), name=name, signature=SIGNATURE, writer=f"w{number}"
    )
    columns = {"x": np.ones(1)}
    outputs = {"p": np.full(1, 0.5)}
    served = RequestRecord(f"id{number}", moment.timestamp(), 1, "champion", "native", 200, "", 1, 9, 0.1, 0.1)
    log.take([served._replace(columns=columns, outputs=outputs)])
    log.close()


def requests(tmp_path):
    return sorted(text for batch in Reading(str(tmp_path), "m") for text in batch.column("request_id").to_pylist())


def test_small_files_are_merged_and_old_hours_go(state, url, tmp_path):
    """Three files of one hour become one; the request of eleven days ago is gone, with an event."""
    write(tmp_path, NOW - timedelta(days=11), 0)
    for number in (1, 2, 3):
        write(tmp_path, NOW - timedelta(hours=3), number)
    LogMaintenance(state, url).run(NOW)
    assert requests(tmp_path) == ["id1", "id2", "id3"]
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
    assert state.events()[0].action == "predictions.retain"


def test_hours_from_before_the_controller_began_are_merged_once(state, url, tmp_path):
    """It was away for five days. What is written into such an hour afterwards is not looked for."""
    keep = LogMaintenance(state, url)
    for numbers in ((1, 2), (3, 4)):
        for number in numbers:
            write(tmp_path, NOW - timedelta(days=5), number)
        keep.run(NOW)
    assert len(list(tmp_path.rglob("*.parquet"))) == 3
    assert requests(tmp_path) == ["id1", "id2", "id3", "id4"]


def test_a_deploy_is_followed_by_the_hours_of_the_open_window_and_of_the_one_before_it(state, url, tmp_path):
    """Of a window of a week they are counted on the new version's columns, once.

    A day 13 days back is merged by the run after a deploy, 2 files into 1, and by no other: then 1, 2 and 2 into 1.
    """
    bundle = state.deployments("m")[0].bundle
    keep = LogMaintenance(state, url)
    keep.run(NOW)
    for at, (version, fewer) in enumerate([(2, 1), (2, 0), (3, 4)]):
        put(state, "m", [Deployment("m", version, bundle, "run", "champion", {}, monitor={"window_h": 168})])
        for days in (13, 15):
            for number in (1, 2):
                write(tmp_path, NOW - timedelta(days=days), f"{at}{days}{number}")
        before = len(list(tmp_path.rglob("*.parquet")))
        keep.run(NOW)
        assert before - len(list(tmp_path.rglob("*.parquet"))) == fewer


def test_rows_of_a_model_whose_first_deploy_is_on_its_way_are_looked_after(url, tmp_path):
    """The controller starts with it, and its event follows; rows of an earlier state may be there."""
    with State.open(url) as state:
        bundle = BundleRef(f"{tmp_path}/bundles/{'d' * 64}", "d" * 64)
        item = Deployment("m", 1, bundle, "run", "champion", {"log": {"retention_days": 10.0}})
        put(state, "m", [item], action="deploy.start")
        write(tmp_path, NOW - timedelta(days=11), 0)
        LogMaintenance(state, url).run(NOW)
        assert state.events()[0].action == "predictions.retain"
    assert list(tmp_path.rglob("*.parquet")) == []


def test_old_rows_of_a_model_that_was_removed_go_too(state, url, tmp_path):
    """By the setting it had last; its newer rows stay and are merged. Rows of a model of somebody else stay."""
    put(state, "m", [], action="remove")
    for age_days, numbers in ((11, (0, 1)), (9, (2, 3))):
        for number in numbers:
            write(tmp_path, NOW - timedelta(days=age_days), number)
    write(tmp_path, NOW - timedelta(days=400), 4, name="somebody-elses")
    old_labels, new_labels = (tmp_path / f"labels/m/date=2026-02-{day}" for day in (17, 20))
    old_labels.mkdir(parents=True)
    new_labels.mkdir(parents=True)
    LogMaintenance(state, url).run(NOW)
    assert requests(tmp_path) == ["id2", "id3"]
    assert len(list((tmp_path / "predictions/m").rglob("*.parquet"))) == 1
    assert (old_labels.exists(), new_labels.exists()) == (False, True)
    assert list((tmp_path / "predictions/somebody-elses").rglob("*.parquet"))
    event = state.events()[0]
    assert (event.action, event.subject) == ("predictions.retain", "m")
    assert event.why == "2 hours and days before 2026-02-19 12:00 UTC"


def test_rows_in_a_storage_that_a_model_left_go_too(state, url, tmp_path):
    """Its first version was written below another folder, where its rows grow old."""
    elsewhere = ModelVersionRef("m", 0, "run", BundleRef(f"{tmp_path}/elsewhere/bundles/{'e' * 64}", "e" * 64), ())
    record_version(state, elsewhere, why="", now=NOW)
    write(tmp_path / "elsewhere", NOW - timedelta(days=11), 0)
    write(tmp_path, NOW - timedelta(hours=3), 1)
    LogMaintenance(state, url).run(NOW)
    assert requests(tmp_path) == ["id1"]
    assert not list((tmp_path / "elsewhere").rglob("*.parquet"))


def test_old_rows_go_from_a_disk_that_is_full(state, url, tmp_path, monkeypatch):
    """Files cannot be merged there, of which the record tells; what goes makes room."""
    for age_days, numbers in ((11, (0, 1)), (1, (2, 3))):
        for number in numbers:
            write(tmp_path, NOW - timedelta(days=age_days), number)

    @contextmanager
    def full(_store, _path):
        raise StorageError("no space left on device")
        yield

    monkeypatch.setattr(FencedStore, "create", full)
    LogMaintenance(state, url).run(NOW)
    assert requests(tmp_path) == ["id2", "id3"]
    assert [event.action for event in state.events()[:2]] == ["controller.error", "predictions.retain"]


@pytest.mark.parametrize("days", [None, 1e6, 1e12])
def test_rows_that_are_kept_forever_stay(state, url, tmp_path, days):
    """Also those of a model that is not live any more, and where somebody wrote a million days."""
    (item,) = state.deployments("m")
    put(state, "m", [replace(item, serve={"log": {"retention_days": days}})])
    put(state, "m", [], action="remove")
    write(tmp_path, NOW - timedelta(days=4000), 0)
    LogMaintenance(state, url).run(NOW)
    assert requests(tmp_path) == ["id0"]
    assert state.events()[0].action == "remove"


def test_trouble_with_one_log_is_on_the_record(state, url, tmp_path):
    """Where files cannot be merged, nothing is raised and the reason is kept, once however often it fails."""
    write(tmp_path, NOW - timedelta(hours=3), 1)
    (file,) = tmp_path.rglob("*.parquet")
    other = Deployment("n", 1, BundleRef("no-such-scheme://x/bundles/d", "d" * 64), "run", "champion")
    put(state, "n", [other])
    maintain = LogMaintenance(state, url)
    for _ in range(2):
        maintain.run(NOW)
    (event,) = [event for event in state.events() if event.action == "controller.error"]
    assert event.subject == "n"
    assert file.exists()


def test_what_is_asked_for_during_a_run_follows_it(state, url):
    """The newest of them alone: a window that ended meanwhile is judged without another hour's delay."""
    begun, goes_on, done, seen = Event(), Event(), Event(), []

    def watch(now):
        seen.append(now)
        begun.set()
        assert goes_on.wait(30)
        if len(seen) == 2:
            done.set()

    maintain, hour = LogMaintenance(state, url, then=watch), timedelta(hours=1)
    maintain(NOW)
    assert begun.wait(30)
    maintain(NOW + hour)
    maintain(NOW + 2 * hour)
    goes_on.set()
    assert done.wait(30)
    assert seen == [NOW, NOW + 2 * hour]
