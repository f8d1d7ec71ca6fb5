"""How a model is watched, in words. Pure."""

from __future__ import annotations

from raymlops.config.schema import MonitorSection
from raymlops.lifecycle.watch.monitor_text import monitor_changes, monitor_text
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
