"""The gauges of what is watched, from a state database written by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from stored import put

from raymlops.lifecycle.watch.gauges import WatchGauges
from raymlops.lifecycle.watch.incidents import file_verdict, known
from raymlops.lifecycle.watch.status import drift_status
from raymlops.records import BundleRef
from raymlops.state.store import Deployment
from raymlops.state.watch.incidents import Filed, Incident, change_incident, incidents_of, record_window, tell
from raymlops.state.watch.messages import Message, put_message
from raymlops.state.watch.windows import JudgedWindow

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Gauge:
    """Keeps what it was set to."""

    def __init__(self, values):
        self.values = values

    def set(self, value, tags):
        self.values[tuple(tags.items())] = value


@pytest.fixture
def published(state):
    """Return the gauges, and what publishes them into a dictionary by name."""
    values = {}
    gauges = WatchGauges(state, make=lambda family: Gauge(values.setdefault(family.name, {})))

    def publish():
        gauges()
        return values

    return publish


def judged(state, day, outcome, *, told=False, **fields):
    start = FIRST + day * DAY
    window = JudgedWindow("m", "inputs", "drift", 0, start, start + DAY, 7, outcome, "why", 1_000, start + DAY)
    incident = Incident("i", "m", "inputs", "drift", 0, start, start, 1, "x")
    record_window(state, replace(window, **fields), lambda _known: [Filed(incident)] if told else [])
    if told:
        tell(state, lambda *_: [(Message("i-opened", "i", "opened", "title", "body", start), [])])


def test_the_newest_window_of_each_side_is_shown(state, published):
    """By its numbers; skew is no window of now, and who is not live has none."""
    put(state, "m", [Deployment("m", 7, BundleRef("file:///b", "d" * 64), "run", "champion")])
    columns = {"columns": [{"column": "x", "distance": 2.0}, {"column": "y", "distance": -6.5}]}
    judged(state, 0, "ok", p_one=0.5)
    judged(state, 1, "alarm", p_one=0.04, p_two=0.004, rows=500, details=columns, told=True)
    judged(state, 0, "alarm", side="outputs", version=7)
    judged(state, 1, "waiting", side="outputs", version=7)
    judged(state, 2, "alarm", kind="skew", version=7)
    judged(state, 0, "warn", name="gone")
    found = published()
    inputs, outputs = ((("model", "m"), ("side", side)) for side in ("inputs", "outputs"))
    assert found["raymlops_drift_outcome"] == {inputs: 2.0, outputs: -1.0}
    assert found["raymlops_drift_p"] == {(*inputs, ("windows", "1")): 0.04, (*inputs, ("windows", "2")): 0.004}
    assert found["raymlops_drift_distance"] == {inputs: 6.5, outputs: 0.0}
    assert found["raymlops_drift_rows"][inputs] == 500
    assert found["raymlops_drift_window_seconds"][inputs] == 86_400
    assert found["raymlops_drift_judged_until"][inputs] == (FIRST + 2 * DAY).timestamp()
    assert found["raymlops_incidents_open"] == {(("model", "m"),): 1}
    assert found["raymlops_messages_waiting"] == {(("model", "m"),): 0}


def test_after_a_rollback_they_show_the_version_that_is_live(state, published):
    """Of the outputs, which are judged by version; the inputs are judged over all versions."""
    for version, day, outcome in ((7, 0, "ok"), (8, 5, "alarm")):
        judged(state, day, outcome, side="outputs", version=version, judged_by=version)
        judged(state, day, outcome, judged_by=version)
    put(state, "m", [Deployment("m", 7, BundleRef("file:///b", "d" * 64), "run", "champion")])
    outcomes = {dict(labels)["side"]: value for labels, value in published()["raymlops_drift_outcome"].items()}
    assert outcomes == {"outputs": 0.0, "inputs": 2.0}


def test_verdicts_by_bounds_do_not_hide_those_on_drift(state, published):
    """Silence ends and begins several times a day where batches come; each window by its bounds is kept too."""
    put(state, "m", [Deployment("m", 7, BundleRef("file:///b", "d" * 64), "run", "champion")])
    judged(state, 0, "ok")
    judged(state, 0, "warn", side="outputs", version=7)
    for day in range(1, 31):
        judged(state, day, "alarm", kind="silence")
        judged(state, day, "ok", kind="quality")
    outcomes = {dict(labels)["side"]: value for labels, value in published()["raymlops_drift_outcome"].items()}
    assert outcomes == {"inputs": 0.0, "outputs": 1.0}
    windows = drift_status(state, "m", 7)["windows"]
    assert [(one["side"], one["outcome"]) for one in windows] == [("inputs", "ok"), ("outputs", "warn")]


def test_messages_that_were_tried_are_counted(state, published):
    """Those that were not are about to be sent."""
    put(state, "m", [Deployment("m", 7, BundleRef("file:///b", "d" * 64), "run", "champion")])
    judged(state, 0, "alarm", told=True)
    put_message(state, Message("i-opened", "i", "opened", "t", "b", FIRST, attempts=1, last_error="away"))
    assert published()["raymlops_messages_waiting"] == {(("model", "m"),): 1}


def test_a_model_that_was_removed_has_none(state, published):
    """Ray forgets those that are not set again."""
    put(state, "m", [Deployment("m", 7, BundleRef("file:///b", "d" * 64), "run", "champion")])
    judged(state, 0, "alarm", p_one=0.01, told=True)
    assert published()
    put(state, "m", [])
    for values in published().values():
        values.clear()
    assert not any(published().values())


def test_an_incident_that_somebody_knows_of_is_not_counted(state, published):
    """It stays open; whoever is called by the gauge knows of it. Another column counts."""
    put(state, "m", [Deployment("m", 7, BundleRef("file:///b", "d" * 64), "run", "champion")])
    judged(state, 0, "alarm", told=True)
    window = JudgedWindow("m", "inputs", "quality", 0, FIRST, FIRST + DAY, 7, "alarm", "why", 9, FIRST + DAY)
    record_window(state, window, partial(file_verdict, window, ("min_rows",)))
    assert published()["raymlops_incidents_open"] == {(("model", "m"),): 2}
    (beyond,) = (one for one in incidents_of(state) if one.kind == "quality")
    change_incident(state, beyond.id, partial(known, now=FIRST, actor="ada", why="known"), name="m")
    assert published()["raymlops_incidents_open"] == {(("model", "m"),): 1}
    assert [one.id for one in incidents_of(state, open_only=True) if one.acknowledged_by] == [beyond.id]
    further = replace(window, start=FIRST + DAY, stop=FIRST + 2 * DAY)
    record_window(state, further, partial(file_verdict, further, ("min_rows", "carrier (max_nulls)")))
    assert published()["raymlops_incidents_open"] == {(("model", "m"),): 2}


def test_quality_is_shown_by_its_numbers(state, published):
    """Of the newest window and of all since the promotion; a bound that is none yet is not there."""
    put(state, "m", [Deployment("m", 7, BundleRef("file:///b", "d" * 64), "run", "champion")])
    details = {
        "skill": 0.2,
        "expected_skill": 0.3,
        "verdict": {"lost": 0.1, "low": 0.05, "high": None},
        "coverage": {"labelled": 0.9, "half_lag_s": 3600.0},
    }
    judged(state, 0, "alarm", side="outputs", kind="skill", version=7, details=details)
    found = {name: values for name, values in published().items() if name.startswith("raymlops_quality")}
    model = ("model", "m")
    assert found == {
        "raymlops_quality_outcome": {(model,): 2.0},
        "raymlops_quality_skill": {(model, ("of", "window")): 0.2, (model, ("of", "expected")): 0.3},
        "raymlops_quality_lost": {(model, ("bound", "mean")): 0.1, (model, ("bound", "low")): 0.05},
        "raymlops_quality_labelled": {(model,): 0.9},
        "raymlops_quality_label_lag_seconds": {(model,): 3600.0},
        "raymlops_quality_judged_until": {(model,): (FIRST + DAY).timestamp()},
    }
