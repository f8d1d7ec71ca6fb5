"""What was always served otherwise than trained is judged by what was served first, column by column."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
import served_days
from served_days import ROWS
from watching import TODAY, inputs, watching

from raymlops.lifecycle.prediction_log import compact_predictions
from raymlops.lifecycle.sources import state_of
from raymlops.lifecycle.watch.acknowledge import acknowledge
from raymlops.lifecycle.watch.drift import drift
from raymlops.state.drift import incidents_of

AA = np.array(["AA"] * 102 + ["UA"] * 18, dtype=object)
LACKS = "training differs from what is served, and the serving baseline has {} of 26 windows"


def of_inputs(record):
    return next(one for one in record.windows if (one.side, one.kind) == ("inputs", "drift"))


@pytest.fixture
def watch(spec, tmp_path):
    """Return what serves days up to one from now, counts and judges them."""
    with state_of(spec) as state:
        yield watching(state, tmp_path)


def test_columns_without_skew_are_judged_against_training_from_the_first_window_on(spec, tmp_path):
    """What was never as trained waits for windows of its own; a shift of another column is seen at once."""
    served_days.serve(tmp_path, [0.9] * 10, until=TODAY)
    compact_predictions("flights", spec)
    skew, *_ = drift("flights").windows
    assert (skew.kind, skew.outcome, skew.start) == ("skew", "alarm", TODAY - timedelta(days=9))
    assert skew.verdict.flagged == ("distance",)
    now = of_inputs(drift("flights"))
    assert (now.outcome, now.against, now.rows) == ("ok", "training", ROWS)
    assert [one.column for one in now.verdict.columns] == ["carrier"]
    assert now.refused == {"distance": LACKS.format(8)}
    assert f"not judged: distance: {LACKS.format(8)}" in now.text()
    served_days.serve(tmp_path, [0.9] * 2, until=TODAY, carrier=AA, seed=3)
    compact_predictions("flights", spec)
    now = of_inputs(drift("flights"))
    assert (now.outcome, now.verdict.flagged) == ("alarm", ("carrier",))


def test_a_skewed_column_is_judged_by_what_was_served_first_once_that_is_enough(spec, watch):
    """Both are judged then, each against its own; what drifts in either is an alarm."""
    found = inputs(watch([0.9] * 20))
    assert (found.outcome, found.details["refused"]) == ("ok", {"distance": LACKS.format(18)})
    found = inputs(watch([0.9] * 12, until=TODAY + timedelta(days=12)))
    assert (found.outcome, found.details["refused"]) == ("ok", {})
    assert found.against == "training, and of distance the first windows served"
    found = inputs(watch([0.3] * 2, until=TODAY + timedelta(days=14)))
    assert found.outcome == "alarm"
    assert [one["column"] for one in found.details["columns"] if one["flagged"]] == ["distance"]


def test_skew_is_by_the_columns_of_its_incident_whatever_became_of_it(spec, watch):
    """And before anything is stored by those that are found now: both times the same."""
    shifted = np.random.default_rng(4).normal(0.9, 1.0, ROWS)
    kept = inputs(watch([0.0] * 6, distance=shifted))
    with state_of(spec) as state:
        (incident,) = incidents_of(state)
        assert (incident.kind, incident.columns) == ("skew", ("distance",))
        acknowledge("flights", incident.id, why="known")
    again = of_inputs(drift("flights", between_columns=True))
    assert {**again.refused} == kept.details["refused"] == {"distance": LACKS.format(4)}


def test_where_all_columns_are_skewed_the_window_waits(spec, tmp_path):
    """Nothing else could be judged."""
    served_days.serve(tmp_path, [0.9] * 10, until=TODAY, carrier=AA)
    compact_predictions("flights", spec)
    skew, now, *_ = drift("flights").windows
    assert set(skew.verdict.flagged) == {"distance", "carrier"}
    assert (now.outcome, now.waiting) == ("waiting", LACKS.format(8))
