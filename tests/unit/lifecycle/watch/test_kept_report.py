"""The report in MLflow: by a real state, a real log, a real bundle and a real MLflow."""

import logging
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from served_days import DAY, TODAY, bundle_of, deploy, references, serve
from stored import put

from raymlops.errors import TrackingError
from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
from raymlops.lifecycle.watch.judge import Judge
from raymlops.lifecycle.watch.kept_report import ARTIFACT, TURN_S, KeptReports
from raymlops.state.store import Deployment
from raymlops.state.watch.windows import judged_windows
from raymlops.tracking.client import Tracker

HOUR = timedelta(hours=1)


@pytest.fixture
def tracker(storage_path):
    return Tracker(f"sqlite:///{storage_path}/mlflow.db")


@pytest.fixture
def run_id(tracker):
    return tracker.client.create_run(tracker.client.create_experiment("flights")).info.run_id


@pytest.fixture
def live(state, tmp_path, run_id):
    """Return the state, in which version 3 of flights is live, from a run of MLflow."""
    bundle = bundle_of(tmp_path, references())
    deploy(state, bundle)
    put(state, "flights", [Deployment("flights", 3, bundle, run_id, "champion", {})])
    return state


class Counted:
    """MLflow's client, which may be away; counts what was written."""

    def __init__(self, tracker):
        self.tracker, self.written, self.text, self.away, self.asked = tracker, [], "", False, []

    def __call__(self):
        return self

    def log_text(self, run_id, text, path):
        self.asked.append(run_id)
        if self.away:
            raise TrackingError("MLflow does not answer")
        self.written.append(path)
        self.text = text
        self.tracker.log_text(run_id, text, path)


def watching(state, client, **options):
    """Return what the controller does once hours are counted: it judges, and keeps the reports."""
    judge, keep = Judge(state), KeptReports(state, client, **options)

    def watch(now):
        judge(now)
        keep(now)

    return watch


def test_it_is_written_once_windows_were_judged_and_replaced(live, url, tmp_path, tracker, run_id):
    """Of each day one, whatever the number of hours at which the controller looks; one file at all times."""
    client = Counted(tracker)
    keep = watching(live, client)
    serve(tmp_path, [0, 0, 0, 0])
    for day, shift in enumerate((0.6, 0.6)):
        for hours in (1, 2, 13):
            LogMaintenance(live, url, then=keep).run(TODAY + day * DAY + hours * HOUR)
        assert client.written == [ARTIFACT] * (day + 1)
        serve(tmp_path, [shift], until=TODAY + (day + 1) * DAY, seed=day + 3)
    LogMaintenance(live, url, then=keep).run(TODAY + 2 * DAY + HOUR)
    assert [one.path for one in tracker.client.list_artifacts(run_id, "drift")] == [ARTIFACT]
    text = Path(tracker.client.download_artifacts(run_id, ARTIFACT, str(tmp_path))).read_text(encoding="utf-8")
    assert "Inputs: alarm." in text
    assert "incidents" in text


def test_where_mlflow_is_away_verdicts_are_stored_and_the_report_follows(live, url, tmp_path, tracker, caplog):
    """That is told once, and ends nothing. Windows of more than a week ago, which nobody judged, are not shown."""
    client = Counted(tracker)
    client.away = True
    keep = watching(live, client)
    serve(tmp_path, [0] * 12)
    caplog.set_level(logging.ERROR)
    for hours in (1, 2):
        LogMaintenance(live, url, then=keep).run(TODAY + hours * HOUR)
    errors = [event for event in live.events("flights") if event.action == "controller.error"]
    assert [event.why for event in errors] == ["its report was not kept: TrackingError: MLflow does not answer"]
    client.away = False
    LogMaintenance(live, url, then=keep).run(TODAY + 3 * HOUR)
    assert client.written == [ARTIFACT]
    assert f"{TODAY - 7 * DAY:%Y-%m-%d} 00:00 UTC, 120 rows" in client.text
    assert f"{TODAY - 9 * DAY:%Y-%m-%d} 00:00 UTC, 120 rows" not in client.text


def test_an_mlflow_that_does_not_answer_is_asked_once_a_turn(live, url, tmp_path, tracker):
    """All models are judged; in the next turn it is the turn of those that were left."""
    (item,), names = live.deployments("flights"), ["also", "flights", "more"]
    for name in ("also", "more"):
        put(live, name, [replace(item, name=name, run_id=f"run of {name}")])
    for name in names:
        serve(tmp_path, [0, 0, 0], name=name)
    client = Counted(tracker)
    client.away = True
    watch = watching(live, client)
    for turn in range(1, 5):
        LogMaintenance(live, url, then=watch).run(TODAY + turn * HOUR)
        assert all(judged_windows(live, name) for name in names)
        assert len(client.asked) == turn
    assert client.asked[:3] == ["run of also", item.run_id, "run of more"]
    assert client.asked[3] == client.asked[0]


def test_a_turn_is_bounded(live, url, tmp_path, tracker):
    """An MLflow that is slow gets the rest in the next turn, and each report once."""
    put(live, "also", [replace(live.deployments("flights")[0], name="also")])
    for name in ("also", "flights"):
        serve(tmp_path, [0, 0, 0], name=name)
    client = Counted(tracker)
    watch = watching(live, client, clock=lambda: TURN_S * len(client.written))
    for turn in (1, 2, 3):
        LogMaintenance(live, url, then=watch).run(TODAY + turn * HOUR)
        assert len(client.written) == min(turn, 2)


def test_a_run_that_was_deleted_is_said_once(live, url, tmp_path, tracker):
    """It is not tried again until more is to be shown, and not said again then; another model's report is written."""
    (item,) = live.deployments("flights")
    put(live, "flights", [replace(item, run_id="f" * 32)])
    put(live, "last", [replace(item, name="last")])
    for name in ("flights", "last"):
        serve(tmp_path, [0, 0, 0], name=name)
    client = Counted(tracker)
    watch = watching(live, client)
    for hours in (1, 2, 3):
        LogMaintenance(live, url, then=watch).run(TODAY + hours * HOUR)
    assert client.asked == ["f" * 32, item.run_id]
    for name in ("flights", "last"):
        serve(tmp_path, [0], name=name, until=TODAY + DAY)
    LogMaintenance(live, url, then=watch).run(TODAY + DAY + HOUR)
    assert client.asked == ["f" * 32, item.run_id] * 2
    (event,) = [event for event in live.events("flights") if event.action == "controller.error"]
    assert event.why.startswith("its report was not kept: TrackingError: MLflow at")
    assert "not found" in event.why
