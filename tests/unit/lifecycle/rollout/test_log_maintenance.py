"""The hourly look after the logs of live models, on files written by a prediction log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from stored import put

from raymlops.arrays import Column
from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.read import Reading
from raymlops.predictions.served import RequestRecord
from raymlops.predictions.settings import LogSettings
from raymlops.records import BundleRef
from raymlops.signature import Signature
from raymlops.state.store import Deployment, State

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SIGNATURE = Signature((Column("x", "float"),), (Column("p", "float"),))


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/state.db"


@pytest.fixture
def state(url, tmp_path):
    """Return a state in which version 1 is live, with its bundle under the folder that the log is in."""
    with State.open(url) as state:
        bundle = BundleRef(f"{tmp_path}/bundles/{'d' * 64}", "d" * 64)
        item = Deployment("m", 1, bundle, "run", "champion", {"log": {"retention_days": 10.0}})
        put(state, "m", [item])
        yield state


def write(tmp_path, moment, number):
    """Let a log write one request as a file of its own."""
    log = PredictionLog(
        LogSettings(enabled=True, uri=str(tmp_path)), name="m", signature=SIGNATURE, writer=f"w{number}"
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


def test_trouble_with_one_log_is_on_the_record(state, url, tmp_path):
    """Where files cannot be merged, nothing is raised and the reason is kept."""
    write(tmp_path, NOW - timedelta(hours=3), 1)
    (file,) = tmp_path.rglob("*.parquet")
    other = Deployment("n", 1, BundleRef("no-such-scheme://x/bundles/d", "d" * 64), "run", "champion")
    put(state, "n", [other])
    LogMaintenance(state, url).run(NOW)
    event = state.events()[0]
    assert (event.action, event.subject) == ("controller.error", "n")
    assert file.exists()
