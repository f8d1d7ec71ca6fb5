"""What is told of a live model's traffic beside its drift, by a real log and a real bundle."""

from datetime import UTC, datetime, timedelta

import pytest
import served_days
from served_days import ROWS, serve_faulty

from raymlops.cli.app import main
from raymlops.config.data import QualitySection
from raymlops.config.schema import MonitorSection
from raymlops.lifecycle.prediction_log import compact_predictions
from raymlops.lifecycle.sources import state_of
from raymlops.lifecycle.watch.drift import drift, judged
from raymlops.lifecycle.watch.judge import judge_due

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
DAY = timedelta(days=1)


def serve(tmp_path, days=5, **changes):
    served_days.serve(tmp_path, [0.0] * days, until=TODAY, **changes)


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
    """A quarter of 480 rows is kept: each day is judged by 120, and had 480, as those before it."""
    serve(tmp_path, weight=4.0)
    compact_predictions("flights", spec)
    with state_of(spec) as state:
        judge_due(state, "flights", now=datetime.now(UTC) + timedelta(hours=2))
        monitor = MonitorSection(quality=QualitySection(min_rows=400))
        found = judged(state, "flights", now=datetime.now(UTC), monitor=monitor)
    assert found.quality is not None
    (window,) = found.quality.windows
    assert (window.rows, window.usual_rows, found.quality.findings) == (4 * ROWS, 4 * ROWS, ())
    assert [one.rows for one in found.windows if one.kind == "drift"] == [ROWS] * 2


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


def test_windows_that_are_not_counted_or_not_there_are_not_told_of(spec, tmp_path):
    """Their verdict says so."""
    found = drift("flights")
    assert found.quality is not None
    assert (found.quality.windows, found.quality.silent_h) == ((), None)
    serve(tmp_path, 2)
    found = drift("flights")
    assert found.quality is not None
    assert found.quality.windows == ()
