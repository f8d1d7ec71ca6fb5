"""Five weeks of flights through a real endpoint, on the clock of a replay: one whole turn of the loop."""

import pytest

from raymlops.lifecycle.replay.watch import watch_demo

pytestmark = pytest.mark.soak


def test_five_weeks_end_with_a_retrained_version_that_answers(tmp_path):
    """A schedule of four weeks retrains; labels come a week late; the first weeks are answered by the first version."""
    record = watch_demo(root=tmp_path / "demo", weeks=6, on_step=print)
    first, *_, last = record.weeks
    assert first["losses"]["live"] == pytest.approx(first["losses"]["frozen"], abs=1e-6)
    assert set(first["versions"]) == {"1"}
    assert "2" in last["versions"]
    assert any("(schedule" in event for week in record.weeks for event in week["events"])
    answered = sum(week["rows"] for week in record.weeks)
    assert 0 < record.labels < answered
    assert "retrain.triggers.every_days: 28.0 (default none)" in record.policy
