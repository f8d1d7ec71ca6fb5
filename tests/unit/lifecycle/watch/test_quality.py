"""What is told of a live model's traffic beside its drift, by a real log and a real bundle."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import served_days
from judged_days import TODAY
from served_days import ROWS, serve_faulty
from served_requests import served
from stored import put

from raymlops.arrays import Column
from raymlops.cli.app import main
from raymlops.config.data import QualitySection
from raymlops.config.schema import MonitorSection
from raymlops.lifecycle.prediction_log import compact_predictions
from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
from raymlops.lifecycle.sources import state_of
from raymlops.lifecycle.watch.drift import drift, judged
from raymlops.lifecycle.watch.judge import Judge, judge_due
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.settings import LogSettings
from raymlops.profiles.reference import Chunk, reference_of
from raymlops.signature import Signature
from raymlops.state.watch.incidents import incidents_of
from raymlops.state.watch.windows import judged_windows

DAY = timedelta(days=1)


def serve(tmp_path, days=5, **changes):
    served_days.serve(tmp_path, [0.0] * days, until=TODAY, **changes)


def deployed(state, at, **bounds):
    """Deploy the model anew at a time."""
    (item,) = state.deployments("flights")
    put(state, "flights", [], action="remove")
    put(state, "flights", [replace(item, created_at=at, monitor={"quality": bounds})])


def test_quiet_traffic_is_told_in_a_line(spec, tmp_path):
    """Its volume beside that of days before it, as they were judged; nothing rose."""
    serve(tmp_path)
    compact_predictions("flights", spec)
    with state_of(spec) as state:
        judge_due(state, "flights", now=datetime.now(UTC) + timedelta(hours=2))
    found = drift("flights")
    assert found.quality is not None
    (window,) = found.quality.windows
    assert (window.rows, window.usual_rows, window.columns, window.repeated) == (ROWS, ROWS, (), 0.0)
    assert f"data, {TODAY - DAY:%Y-%m-%d} 00:00 to {TODAY:%Y-%m-%d} 00:00 UTC: 120 rows (usually 120)" in found.text()
    assert found.quality.silent_h == pytest.approx((datetime.now(UTC) - TODAY).total_seconds() / 3600 + 11, abs=0.1)


def test_the_volume_of_a_sampled_log_is_what_its_rows_stand_for(spec, tmp_path):
    """A quarter of 480 rows is kept, which is one request: a day had 480, as those before it, and is judged by one."""
    serve(tmp_path, weight=4.0)
    compact_predictions("flights", spec)
    with state_of(spec) as state:
        judge_due(state, "flights", now=datetime.now(UTC) + timedelta(hours=2))
        monitor = MonitorSection(quality=QualitySection(min_rows=400))
        found = judged(state, "flights", now=datetime.now(UTC), monitor=monitor)
    assert found.quality is not None
    (window,) = found.quality.windows
    assert (window.rows, window.usual_rows, found.quality.findings) == (4 * ROWS, 4 * ROWS, ())
    assert [one.rows for one in found.windows if one.kind == "drift"] == [1] * 2


def test_what_rose_is_told_and_no_alarm_by_default(spec, tmp_path, capsys):
    """Beside the verdicts, and with exit code 0."""
    serve_faulty(tmp_path, until=TODAY)
    compact_predictions("flights", spec)
    assert main(["drift", "flights", "--fail-on-drift"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  data, "))
    assert "140 rows; missing: carrier 4.3%; texts that training has not, or hardly: carrier 17.1%" in line


def test_a_configured_bound_is_an_alarm(spec, tmp_path):
    """Each with what was got and is allowed; silence too."""
    serve_faulty(tmp_path, until=TODAY)
    compact_predictions("flights", spec)
    bounds = QualitySection(
        max_nulls=0.01, max_out_of_range=0.3, max_new_categories=0.1, max_repeated=0.1, min_rows=1000, max_silence_h=0.1
    )
    now = TODAY + timedelta(hours=9)
    monitor = MonitorSection(quality=bounds)
    with state_of(spec) as state:
        deployed(state, TODAY - 9 * DAY)
        found = judged(state, "flights", now=now, monitor=monitor)
        later = judged(state, "flights", now=now + 3 * DAY, monitor=monitor)
    assert found.drifted
    assert found.quality is not None
    assert [finding.check for finding in found.quality.findings] == [
        "silence",
        "rows",
        "repeated",
        "nulls",
        "new_categories",
    ]
    text = found.text()
    assert "data, beyond its bound: no row for 19.0 h, more than 0.1 (max_silence_h)" in text
    assert "carrier, missing: 4.3%, more than 1.0% (max_nulls)" in text
    assert "140 rows, fewer than 1,000 (min_rows)" in text
    assert "data: no row in the last 49 h" in later.text()


def test_the_time_before_the_first_deploy_is_no_silence(spec):
    """As for the controller, by which an incident opens."""
    now, monitor = TODAY + timedelta(hours=12), MonitorSection(quality=QualitySection(max_silence_h=6))
    with state_of(spec) as state:
        deployed(state, now - timedelta(hours=5), max_silence_h=6)
        found = [judged(state, "flights", now=now + timedelta(hours=more), monitor=monitor) for more in (0, 2)]
        judge_due(state, "flights", now=now + timedelta(hours=2))
        assert [one.kind for one in judged_windows(state, "flights")] == ["silence"]
    assert [one.drifted for one in found] == [False, True]
    assert "no row in the last 49 h" in found[0].text()


def test_of_a_window_whose_hours_are_partly_removed_there_are_no_figures(spec, tmp_path):
    """Two and a half days are kept at noon: those of the two newest of five windows."""
    serve(tmp_path)
    now, monitor = TODAY + timedelta(hours=12), MonitorSection(quality=QualitySection(min_rows=100))
    compact_predictions("flights", spec)
    with state_of(spec) as state:
        (item,) = state.deployments("flights")
        for days, told in ((90.0, 5), (2.5, 2)):
            put(state, "flights", [replace(item, serve={"log": {"retention_days": days}})])
            found = judged(state, "flights", now=now, since=TODAY - 5 * DAY, monitor=monitor)
            assert len(found.quality.windows) == told


def test_without_a_log_there_is_no_silence(spec):
    """What was answered is not known: it is said, and no incident."""
    now, monitor = TODAY + timedelta(hours=12), MonitorSection(quality=QualitySection(max_silence_h=6))
    with state_of(spec) as state:
        deployed(state, now - timedelta(hours=9), max_silence_h=6, min_rows=10)
        (item,) = state.deployments("flights")
        put(state, "flights", [replace(item, serve={"log": {"enabled": False}})])
        found = judged(state, "flights", now=now, monitor=monitor)
        judge_due(state, "flights", now=now)
        assert judged_windows(state, "flights") == []
    assert not found.drifted
    assert "nothing is logged (serve.log.enabled is false), so that nothing is judged" in found.text()


def test_a_bound_is_of_all_columns_however_many_rose_more(live, url, tmp_path):
    """21 of texts have unknown ones, for which there is no bound; of 400 ages 46 are missing, by training 36 are."""
    names = [f"t{at}" for at in range(21)]

    def columns(number, nulls, new):
        texts = np.array(["NEW"] * new + ["A", "B"] * ((number - new) // 2), dtype=object)
        ages = np.where(np.arange(number) < nulls, np.nan, np.linspace(0, 1, number))
        return {**dict.fromkeys(names, texts), "age": ages}

    table = [Chunk(columns(4_000, 360, 0), 4_000, served_days.TODAY.timestamp() - np.arange(4_000)[::-1] * 3600.0)]
    bundle = served_days.bundle_of(tmp_path / "wide", {"features": reference_of(lambda: table, rows=4_000)})
    served_days.deploy(live, bundle, version=4)
    deployed(live, served_days.TODAY - 9 * DAY, max_nulls=0.1)
    inputs = (*(Column(name, "string") for name in names), Column("age", "float", nullable=True))
    signature = Signature(inputs=inputs, outputs=(Column("late", "float"),))
    log = PredictionLog(LogSettings(enabled=True, uri=str(tmp_path)), name="flights", signature=signature, writer="x")
    for day in (2, 1):
        ts = (served_days.TODAY - day * DAY + timedelta(hours=12)).timestamp()
        answered = {"columns": columns(400, 46, 80), "outputs": {"late": np.zeros(400)}, "version": 4}
        log.take([served(f"r{day}", rows=400, ts=ts, **answered)])
    log.close()
    now = served_days.TODAY + timedelta(hours=1)
    LogMaintenance(live, url, then=Judge(live)).run(now)
    (incident,) = (one for one in incidents_of(live) if one.kind == "quality")
    assert incident.column == "age (max_nulls)"
    found = judged(live, "flights", now=now, monitor=MonitorSection(quality=QualitySection(max_nulls=0.1)))
    assert [one.message for one in found.quality.findings] == [
        "2026-02-28 00:00: age, missing: 11.5%, more than 10.0% (max_nulls)"
    ]
    assert len(found.quality.windows[0].columns) == 20


def test_windows_that_are_not_counted_or_not_there_are_not_told_of(spec, tmp_path):
    """Their verdict says so."""
    found = drift("flights")
    assert found.quality is not None
    assert (found.quality.windows, found.quality.silent_h) == ((), None)
    serve(tmp_path, 2)
    found = drift("flights")
    assert found.quality is not None
    assert found.quality.windows == ()
