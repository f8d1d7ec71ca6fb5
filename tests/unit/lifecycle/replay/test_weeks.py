"""What the weeks of a replay came to."""

from __future__ import annotations

import math

import pytest

from raymlops.config.load import load_data
from raymlops.lifecycle.replay.weeks import Tally, means, policy_lines, table


def closed(number, live, rows=2):
    tally = Tally()
    tally.add([1] * rows, "1", {"live": [live] * rows, "frozen": [0.5] * rows, "blind": [0.25] * rows})
    return tally.closed(number, until="2013-04-08", events=["retraining abc promoted"])


def test_a_week_has_the_log_loss_of_each_on_the_same_rows():
    """Of late flights alone: -ln p."""
    week = closed(1, 0.8)
    assert week.losses == pytest.approx({"live": -math.log(0.8), "frozen": math.log(2), "blind": math.log(4)})
    assert (week.rows, week.late, week.versions) == (2, 1.0, {"1": 1})
    assert "retraining abc promoted" in week.text()
    assert "version 1" in week.short()


def test_a_certain_answer_that_is_wrong_costs_no_infinite_loss():
    """At most -ln 1e-7; a week without labels has no loss."""
    assert closed(1, 0.0).losses["live"] == pytest.approx(-math.log(1e-7))
    assert math.isnan(closed(1, 0.5, rows=0).losses["live"])


def test_the_mean_is_of_all_rows():
    """Two rows of .5 and six of .25: (2 ln 2 + 6 ln 4) / 8."""
    weeks = [closed(1, 0.5), closed(2, 0.25, rows=6)]
    assert means(weeks)["live"] == pytest.approx((2 * math.log(2) + 6 * math.log(4)) / 8)
    assert table(weeks).count("\n") == 3


def test_only_values_that_are_not_the_defaults_are_told():
    """Each with its default; where it is stored decides nothing."""
    plain = {"project": {"name": "flights"}, "recipe": {"import": "raymlops.recipes.flights:Flights"}}
    assert policy_lines(load_data(plain).spec) == []
    ours = plain | {"gate": {"margin": 0.005}, "retrain": {"triggers": {"every_days": 28}}, "storage": {"path": "/x"}}
    assert policy_lines(load_data(ours).spec) == [
        "gate.margin: 0.005 (default 0.0)",
        "retrain.triggers.every_days: 28.0 (default none)",
    ]
