"""How a model is watched, in words. Pure."""

from __future__ import annotations

from raymlops.config.schema import MonitorSection
from raymlops.config.serve import LogSection
from raymlops.lifecycle.watch.monitor_text import monitor_changes, monitor_text, too_short_log
from raymlops.records import BundleRef
from raymlops.state.store import Deployment


def side(version=3, **monitor):
    """Return deployments as an audit event has them."""
    bundle = BundleRef("file:///b", "d" * 64)
    return [Deployment("m", version, bundle, "run", "champion", monitor=monitor).to_dict()]


def test_what_is_watched_is_said_in_a_line():
    """Windows, slices, bounds, and whom it notifies, by the reference alone."""
    assert monitor_text(MonitorSection()) == "windows of 24 h; no notify"
    section = MonitorSection.model_validate(
        {
            "window_h": 6,
            "between_columns": True,
            "slices": {"carrier": ["AA", "DL"]},
            "quality": {"max_nulls": 0.1, "min_rows": 1000},
            "notify": {"env": "DRIFT_NOTIFY"},
        }
    )
    assert monitor_text(section) == (
        "windows of 6 h; correlations; slices carrier AA/DL; bounds max_nulls 0.1, min_rows 1000; "
        "notifies env DRIFT_NOTIFY"
    )


def test_how_labels_are_judged_is_said_where_it_is_not_as_by_default():
    """Metric and windows, and what else was changed."""
    section = MonitorSection.model_validate({"skill": {"metric": "auc", "min": 0.3}})
    assert monitor_text(section) == "windows of 24 h; labels by auc of 24 h, min 0.3; no notify"
    assert monitor_changes(side(3), side(3, skill={"min": 0.3})) == "monitor.skill.min: none -> 0.3"


def test_a_log_too_short_for_a_baseline_is_said_with_what_to_do():
    """22 weeks and a day are 155 days; where all is kept, or nothing is, there is nothing to say."""
    weeks = MonitorSection(window_h=168)
    told = too_short_log(weeks, LogSection())
    assert told is not None
    assert "takes 155 days of the log, and serve.log.retention_days keeps 90" in told
    assert told.endswith("Keep 155 days or more, or take shorter windows (monitor.window_h)")
    for log in (LogSection(retention_days=155), LogSection(retention_days=None), LogSection(enabled=False)):
        assert too_short_log(weeks, log) is None
    assert too_short_log(MonitorSection(), LogSection()) is None
    assert "takes 29 days" in str(too_short_log(MonitorSection(), LogSection(retention_days=14)))


def test_bounds_without_a_log_are_said():
    """None of them is ever judged."""
    bounds = MonitorSection.model_validate({"quality": {"max_silence_h": 6, "min_rows": 10}})
    told = too_short_log(bounds, LogSection(enabled=False))
    assert told == "serve.log.enabled is false: without a log nobody is told of min_rows, max_silence_h"


def test_what_changed_is_said_value_by_value():
    """Between champions, whichever versions they are; of nothing that stayed, and not of the first or the last."""
    before, after = side(3), side(4, window_h=6, quality={"max_nulls": 0.1}, notify={"file": "/who"})
    assert monitor_changes(before, after) == (
        "monitor.window_h: 24 -> 6, monitor.notify: none -> file /who, monitor.quality.max_nulls: none -> 0.1"
    )
    assert monitor_changes(before, side(3, window_h=24)) == ""
    assert monitor_changes([], after) == monitor_changes(before, []) == ""


def test_what_is_no_deployment_has_not_changed():
    """As of the event of an incident, or of a key."""
    assert monitor_changes({"side": "inputs"}, {"side": "inputs"}) == ""
    assert monitor_changes(None, side(3)) == ""
