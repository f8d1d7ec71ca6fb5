"""Traffic and bundles of which nothing, or less, can be said: on a real log and real profiles."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import release_0_1
from served_days import DAY, ROWS, TODAY, bundle_of, deploy, references, serve

from raymlops.config.schema import MonitorSection
from raymlops.errors import NotFoundError
from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
from raymlops.lifecycle.watch.drift import judged
from raymlops.lifecycle.watch.judge import Judge, judge_due
from raymlops.lifecycle.watch.window_drift import WindowDrift, from_stored, to_stored
from raymlops.monitor.drift import ColumnDrift, DriftVerdict
from raymlops.records import BundleRef
from raymlops.state.watch.incidents import incidents_of
from raymlops.state.watch.windows import judged_windows

HOUR = timedelta(hours=1)


def newest(state, now=TODAY + HOUR, *, side="inputs"):
    """Count and judge what is due, and return the newest verdict."""
    LogMaintenance(state, state.url, then=Judge(state)).run(now)
    found = [one for one in judged_windows(state, "flights") if (one.side, one.kind) == (side, "drift")]
    assert not [event.why for event in state.events() if event.action == "controller.error"]
    return found[0]


def test_three_rows_are_no_window(live, tmp_path):
    """They are not judged, and the day after is judged with the last one that has enough."""
    serve(tmp_path, [0, 0, 0], until=TODAY - DAY)
    serve(tmp_path, [9.0], number=3, seed=3)
    found = newest(live)
    assert (found.outcome, found.rows, found.reason) == ("waiting", 3, "fewer than 100 rows: take longer windows")
    serve(tmp_path, [0.0], until=TODAY + DAY, seed=4)
    found = newest(live, TODAY + DAY + HOUR)
    assert found.outcome == "ok"
    assert found.p_two is not None


def test_skew_is_looked_for_where_traffic_begins(live, tmp_path):
    """Not where somebody tried the model: five weeks later what is served is unlike training from the first day."""
    serve(tmp_path, [0.0], number=1, until=TODAY - 40 * DAY)
    LogMaintenance(live, live.url, then=Judge(live)).run(TODAY - 10 * DAY)
    assert [one for one in judged_windows(live, "flights") if one.kind == "skew"] == []
    serve(tmp_path, [0.9] * 3, seed=3)
    newest(live)
    (skew,) = [one for one in judged_windows(live, "flights") if (one.side, one.kind) == ("inputs", "skew")]
    assert (skew.outcome, skew.start) == ("alarm", TODAY - 2 * DAY)
    (incident,) = incidents_of(live)
    assert (incident.kind, incident.column) == ("skew", "distance")


def test_a_column_gone_null_is_an_alarm_in_one_window(live, tmp_path):
    """By the share of what is missing; the other columns are judged all the same."""
    serve(tmp_path, [0, 0, 0], until=TODAY - DAY)
    serve(tmp_path, [0.0], seed=3, carrier=np.full(ROWS, None, object))
    found = newest(live)
    assert found.outcome == "alarm"
    moved = found.details["columns"][0]
    assert (moved["column"], moved["moved"], moved["nulls"]) == ("carrier", "nulls", [0.0, 1.0])
    assert incidents_of(live)[0].column == "carrier"


def test_a_column_that_is_redacted_is_not_judged_and_the_others_are(live, tmp_path):
    """Since yesterday; the verdict says why."""
    serve(tmp_path, [0, 0, 0], until=TODAY - DAY)
    serve(tmp_path, [0.0], seed=3, redact=("carrier",))
    found = newest(live)
    assert found.outcome == "ok"
    assert found.details["refused"] == {
        "carrier": "100% of the rows lack it: it was redacted for a while, or is of another type"
    }
    assert [column["column"] for column in found.details["columns"]] == ["distance"]


def test_hours_of_a_clock_that_is_ahead_wait_for_their_time(live, tmp_path):
    """A day ahead: they are in no window that has ended, are told, and are judged with their window."""
    serve(tmp_path, [0, 0, 0])
    serve(tmp_path, [0.9, 0.9], until=TODAY + 2 * DAY, seed=3)
    assert newest(live).stop == TODAY
    record = judged(live, "flights", now=TODAY + HOUR, monitor=MonitorSection())
    assert record.notes == (
        "2 hours of rows are from later than now: the clock of a node is wrong; they wait for then",
    )
    assert newest(live, TODAY + 2 * DAY + HOUR).stop == TODAY + 2 * DAY


def test_a_reference_shorter_than_a_window_says_so(state, tmp_path):
    """Three days of training, and windows of a week: until the first windows served are enough."""
    deploy(state, bundle_of(tmp_path, references(days=3)), monitor={"window_h": 168})
    serve(tmp_path, [0] * 30)
    found = newest(state)
    assert found.outcome == "insufficient"
    assert "0 own windows, and 20 are needed" in found.reason


def test_a_bundle_without_profiles_says_how_to_make_them(state, tmp_path):
    """Release 0.1 wrote it. That is no error of the controller's: nothing is recorded each hour."""
    (folder,) = (Path(release_0_1.__file__).parent / "bundles").iterdir()
    own = shutil.copytree(folder, tmp_path / "bundles" / folder.name)
    deploy(state, BundleRef(str(own), folder.name))
    serve(tmp_path, [0, 0])
    LogMaintenance(state, state.url, then=Judge(state)).run(TODAY + HOUR)
    assert [event for event in state.events() if event.action == "controller.error"] == []
    with pytest.raises(NotFoundError, match="no profiles") as raised:
        judge_due(state, "flights", now=TODAY + HOUR)
    assert "raymlops models register RUN_ID" in str(raised.value.hint)


def test_of_2000_columns_a_verdict_keeps_the_first_ones():
    """As many bytes as of any number of columns, however long their names are; numbers that are none become null."""
    nan = float("nan")

    names = tuple(f"{'new' * 500}{at}" for at in range(300))

    def column(at):
        quantiles = ((nan,) * 5, (0.0, 1.0, 2.0, 3.0, float("inf")))
        return ColumnDrift(
            f"{'c' * 500}{at}", "location", 9.0, None, 0.0, True, (), 0.5, (0.0, 1.0), quantiles, names, names, None
        )

    columns = tuple(column(at) for at in range(2000))
    verdict = DriftVerdict("alarm", "r" * 9000, 500, 40, 40.0, 0.02, 0.004, columns)
    refused = {f"refused {at}": "redacted" for at in range(2000)}
    found = WindowDrift("inputs", "drift", "training", TODAY, TODAY + DAY, 500, verdict, refused=refused)
    kept = to_stored(found, name="flights", version=3, now=TODAY)
    assert len(json.dumps(kept.to_dict(), allow_nan=False)) < 100_000
    again = from_stored(kept)
    assert (again.outcome, again.side, len(again.refused)) == ("alarm", "inputs", 20)
    assert len(again.verdict.columns) == 20
    assert again.verdict.columns[0].quantiles[0] == pytest.approx((nan,) * 5, nan_ok=True)
    assert len(again.text()) < 20_000
