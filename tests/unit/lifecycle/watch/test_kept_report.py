"""The report in MLflow: by a real state, a real log, a real bundle and a real MLflow."""

import logging
from datetime import timedelta
from pathlib import Path

import pytest
from served_days import DAY, TODAY, bundle_of, deploy, references, serve
from stored import put

from raymlops.errors import TrackingError
from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
from raymlops.lifecycle.watch.judge import Judge
from raymlops.lifecycle.watch.kept_report import ARTIFACT, KeptReports
from raymlops.state.store import Deployment
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
        self.tracker, self.written, self.text, self.away = tracker, [], "", False

    def __call__(self):
        return self

    def log_text(self, run_id, text, path):
        if self.away:
            raise TrackingError("MLflow does not answer")
        self.written.append(path)
        self.text = text
        self.tracker.log_text(run_id, text, path)


def test_it_is_written_once_windows_were_judged_and_replaced(live, url, tmp_path, tracker, run_id):
    """Of each day one, whatever the number of hours at which the controller looks; one file at all times."""
    client = Counted(tracker)
    keep = Judge(live, then=KeptReports(live, client))
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
    keep = Judge(live, then=KeptReports(live, client))
    serve(tmp_path, [0] * 12)
    caplog.set_level(logging.ERROR)
    for hours in (1, 2):
        LogMaintenance(live, url, then=keep).run(TODAY + hours * HOUR)
    errors = [event for event in live.events("flights") if event.action == "controller.error"]
    assert [event.why.partition(":")[2].strip() for event in errors] == ["TrackingError: MLflow does not answer"]
    client.away = False
    LogMaintenance(live, url, then=keep).run(TODAY + 3 * HOUR)
    assert client.written == [ARTIFACT]
    assert f"{TODAY - 7 * DAY:%Y-%m-%d} 00:00 UTC, 120 rows" in client.text
    assert f"{TODAY - 9 * DAY:%Y-%m-%d} 00:00 UTC, 120 rows" not in client.text
