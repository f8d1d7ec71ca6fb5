"""What was always served otherwise than trained is judged by what was served first, column by column."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import numpy as np
import pytest
import served_days
from judged_days import TODAY, inputs, judged_days
from served_days import ROWS
from served_requests import SIGNATURE, served

from raymlops.lifecycle.prediction_log import compact_predictions
from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
from raymlops.lifecycle.sources import state_of
from raymlops.lifecycle.watch.acknowledge import acknowledge
from raymlops.lifecycle.watch.drift import drift
from raymlops.lifecycle.watch.incidents import file_verdict, retire
from raymlops.lifecycle.watch.judge import Judge
from raymlops.lifecycle.watch.live_model import live_model
from raymlops.lifecycle.watch.skew import skew_of
from raymlops.lifecycle.watch.window_drift import WindowDrift, to_stored
from raymlops.monitor.drift import ColumnDrift, DriftVerdict
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.settings import LogSettings
from raymlops.profiles.reference import Chunk, reference_of
from raymlops.state.watch.incidents import change_incident, incidents_of, record_window
from raymlops.state.watch.windows import judged_windows

AA = np.array(["AA"] * 102 + ["UA"] * 18, dtype=object)
LACKS = "its baseline has {} of 26 windows"


@pytest.fixture
def watch(spec, tmp_path):
    """Return what serves days up to one from now, counts and judges them."""
    with state_of(spec) as state:
        yield judged_days(state, tmp_path)


def test_columns_without_skew_are_judged_against_training_from_the_first_window_on(spec, tmp_path):
    """What was never as trained waits for windows of its own; a shift of another column is seen at once."""
    served_days.serve(tmp_path, [0.9] * 8, until=TODAY - timedelta(days=2))
    compact_predictions("flights", spec)
    skew, *_ = drift("flights").windows
    assert (skew.kind, skew.outcome, skew.start) == ("skew", "alarm", TODAY - timedelta(days=9))
    assert skew.verdict.flagged == ("distance",)
    now = inputs(drift("flights").windows)
    assert (now.outcome, now.against, now.rows) == ("ok", "training", ROWS)
    assert [one.column for one in now.verdict.columns] == ["carrier"]
    assert now.refused == {"distance": LACKS.format(6)}
    assert f"not judged: distance: {LACKS.format(6)}" in now.text()
    served_days.serve(tmp_path, [0.9] * 2, until=TODAY, carrier=AA, seed=3)
    compact_predictions("flights", spec)
    now = inputs(drift("flights").windows)
    assert (now.outcome, now.verdict.flagged) == ("alarm", ("carrier",))


def test_a_skewed_column_is_judged_by_what_was_served_first_once_that_is_enough(spec, watch):
    """Both are judged then, each against its own; what drifts in either is an alarm."""
    found = inputs(watch([0.9] * 20))
    assert (found.outcome, found.details["refused"]) == ("ok", {"distance": LACKS.format(18)})
    found = inputs(watch([0.9] * 12, until=TODAY + timedelta(days=12)))
    assert (found.outcome, found.details["refused"]) == ("ok", {})
    assert found.against.startswith("training, and of distance the windows served since ")
    found = inputs(watch([0.3] * 2, until=TODAY + timedelta(days=14)))
    assert found.outcome == "alarm"
    assert [one["column"] for one in found.details["columns"] if one["flagged"]] == ["distance"]


def test_skew_is_by_the_columns_of_its_incident_whatever_became_of_it(spec, watch):
    """And before anything is stored by those that are found now: both times the same."""
    shifted = np.random.default_rng(4).normal(0.9, 1.0, ROWS)
    kept = inputs(watch([0.0] * 6, distance=shifted))
    with state_of(spec) as state:
        (incident,) = incidents_of(state)
        assert (incident.kind, incident.column) == ("skew", "distance")
        acknowledge("flights", incident.id, why="known")
    again = inputs(drift("flights", between_columns=True).windows)
    assert {**again.refused} == kept.details["refused"] == {"distance": LACKS.format(4)}


def test_where_all_columns_are_skewed_the_window_waits(spec, tmp_path):
    """Nothing else could be judged."""
    served_days.serve(tmp_path, [0.9] * 10, until=TODAY, carrier=AA)
    compact_predictions("flights", spec)
    skew, now, *_ = drift("flights").windows
    assert set(skew.verdict.flagged) == {"distance", "carrier"}
    assert (now.outcome, now.waiting) == ("waiting", LACKS.format(8))


def test_all_columns_that_led_to_it_are_skewed_and_not_those_alone_that_a_verdict_keeps(live):
    """Of 30 a verdict keeps 20, and its incident all, also once it is closed."""
    names = tuple(f"c{at}" for at in range(30))
    told = "location", 9.0, None, 0.001, True, (), 0.3, (0.0, 0.0), (), (), (), None
    verdict = DriftVerdict(
        "alarm", "unlike", 500, 30, 28.5, 0.03, None, tuple(ColumnDrift(name, *told) for name in names)
    )
    start = TODAY - timedelta(days=9)
    found = WindowDrift("inputs", "skew", "training", start, start + timedelta(days=1), 500, verdict)
    window = to_stored(found, name="flights", version=3, now=TODAY)
    record_window(live, window, partial(file_verdict, window, names))
    for incident in incidents_of(live):
        change_incident(live, incident.id, partial(retire, now=TODAY, why="a test"), name="flights")
    side = live_model(live, "flights").sides[0]
    skew, columns, kept = skew_of(live, "flights", side, 0)
    assert (len(skew.verdict.columns), columns, kept) == (20, frozenset(names), True)


def test_skew_that_is_first_seen_at_an_hour_that_training_lacks_is_found_in_the_next_ones(state, tmp_path):
    """No training at night, callers at all hours, in another unit from the first on: skew, and no drift is told."""
    rng, days, until = np.random.default_rng(1), 60, TODAY - timedelta(days=20)
    times = (
        until.timestamp()
        - 86400.0 * np.repeat(np.arange(days, 0, -1), 90)
        + np.tile(21600 + np.arange(90) * 720.0, days)
    )
    known = served_days.rows(rng, len(times))
    features = reference_of(lambda: [Chunk(known, len(times), times)], rows=len(times))
    served_days.deploy(state, served_days.bundle_of(tmp_path, {"features": features}), monitor={"window_h": 6})
    log = PredictionLog(LogSettings(enabled=True, uri=str(tmp_path)), name="flights", signature=SIGNATURE, writer="w")
    judge = Judge(state)
    for day in (3, 2, 1):
        for hour in (0, 9, 15, 21):
            ts = (TODAY - timedelta(days=day)).timestamp() + 3600 * hour
            columns, outputs = served_days.rows(rng, shift=3.0), {"late": np.zeros(ROWS)}
            log.take([served(f"{day}-{hour}", rows=ROWS, ts=ts, columns=columns, outputs=outputs)])
    log.close()
    for hours in range(-66, 1, 6):
        LogMaintenance(state, state.url, then=judge).run(TODAY + timedelta(hours=hours + 1))
    found = judged_windows(state, "flights")
    assert [(one.outcome, one.start.hour) for one in found if one.kind == "skew"] == [("alarm", 6)]
    assert {one.outcome for one in found if one.kind == "drift"} <= {"waiting", "insufficient", "ok"}
    assert [one.kind for one in incidents_of(state, "flights")] == ["skew"]
