"""The winner of a sweep, by hand."""

from __future__ import annotations

import math

import pytest

from raymlops.config.sweep import Threshold
from raymlops.errors import SweepError
from raymlops.records import Objective, TrialRecord
from raymlops.tuning.constraints import violations
from raymlops.tuning.study.selection import failures, pareto, reasons, select

MAX = (Objective("validation/auc", "max"),)
MIN = (Objective("validation/loss", "min"),)
BOTH = (Objective("validation/auc", "max"), Objective("latency_ms", "min"))


def trial(number, status, value, *, epochs=3, reason="", **details):
    return TrialRecord(number=number, params={}, status=status, value=value, epochs=epochs, reason=reason, **details)


def pair(number, auc, latency, *, status="complete", **details):
    return trial(number, status, auc, values=(auc, latency), **details)


@pytest.mark.parametrize(("objectives", "winner"), [(MAX, 1), (MIN, 2)])
def test_the_best_value_in_the_mode_wins(objectives, winner):
    trials = [trial(0, "complete", 0.5), trial(1, "complete", 0.9), trial(2, "complete", 0.1)]
    assert select(trials, objectives=objectives).number == winner


def test_failed_and_not_finite_trials_never_win():
    trials = [
        trial(0, "failed", 0.99),
        trial(1, "complete", math.nan),
        trial(2, "complete", math.inf),
        trial(3, "complete", None),
        trial(4, "complete", 0.2),
    ]
    assert select(trials, objectives=MAX).number == 4


def test_a_stopped_trial_loses_to_a_complete_one_however_good_it_looked():
    trials = [trial(0, "pruned", 0.99, epochs=1), trial(1, "complete", 0.7)]
    assert select(trials, objectives=MAX).number == 1


def test_a_stopped_trial_wins_where_none_is_complete():
    trials = [trial(0, "pruned", 0.6), trial(1, "pruned", 0.8), trial(2, "failed", None, reason="x")]
    assert select(trials, objectives=MAX).number == 1


def test_of_equal_values_fewer_epochs_win_then_the_lower_number():
    trials = [
        trial(7, "complete", 0.8, epochs=4),
        trial(9, "complete", 0.8, epochs=2),
        trial(8, "complete", 0.8, epochs=2),
    ]
    assert select(trials, objectives=MAX).number == 8


def test_a_trial_that_breaks_a_constraint_never_wins():
    trials = [trial(0, "complete", 0.9, feasible=False), trial(1, "complete", 0.5)]
    assert select(trials, objectives=MAX).number == 1


def test_where_none_keeps_the_constraints_the_nearest_is_named_and_by_how_much_it_is_off():
    # shares of the bound: trial 0 is (30 - 10) / 10 = 2 off, trial 1 (12.5 - 10) / 10 + (0.8 - 0.6) / 0.8 = 0.5
    trials = [
        trial(0, "complete", 0.9, feasible=False, metrics={"latency_ms": 30.0, "recall": 0.9}),
        trial(1, "pruned", 0.5, feasible=False, metrics={"latency_ms": 12.5, "recall": 0.6}),
        trial(2, "failed", None),
    ]
    bounds = {"latency_ms": Threshold(max=10.0), "recall": Threshold(min=0.8)}
    with pytest.raises(SweepError) as caught:
        select(trials, objectives=MAX, constraints=bounds)
    assert caught.value.message == (
        "none of 3 trials keeps sweep.constraints; the nearest is trial 1: latency_ms is 12.5, allowed is at most 10 "
        "(2.5 off); recall is 0.6, allowed is at least 0.8 (0.2 off)"
    )


def test_a_bound_is_broken_by_how_much_it_is_passed():
    bounds = {"a": Threshold(min=1.0, max=3.0), "b": Threshold(max=0.0)}
    found = violations({"a": 4.0, "b": math.inf}, constraints=bounds)
    assert (found["a min"], found["a max"]) == (-3.0, 1.0)
    assert math.isnan(found["b max"])
    assert math.isnan(violations({}, constraints=bounds)["a max"])


def test_the_front_is_what_no_other_beats_in_all_objectives():
    trials = [
        pair(0, 0.9, 30.0),
        pair(1, 0.8, 10.0),
        pair(2, 0.8, 12.0),  # as good as 1, and slower
        pair(3, 0.95, 99.0, feasible=False),
        pair(4, 0.99, 1.0, status="pruned"),
        pair(5, 0.8, 10.0),  # equal to 1: neither beats the other
        pair(6, 0.7, math.nan),
    ]
    assert pareto(trials, objectives=BOTH) == (0, 1, 5)


def test_of_the_front_the_best_in_the_first_objective_wins():
    assert select([pair(0, 0.8, 10.0), pair(1, 0.9, 30.0), pair(2, 0.9, 20.0)], objectives=BOTH).number == 2


def test_one_objective_has_no_front():
    assert pareto([trial(0, "complete", 0.5)], objectives=MAX) == ()


def test_nothing_usable_says_how_each_failed_grouped():
    reasons = ["NonFiniteError: nan at step 31", "ValueError: no", "NonFiniteError: nan at step 7"]
    trials = [trial(number, "failed", None, reason=reason) for number, reason in enumerate(reasons)]
    with pytest.raises(SweepError) as caught:
        select(trials, objectives=MAX)
    assert caught.value.message.splitlines() == [
        "none of 3 trials gave a usable value",
        "  2 x NonFiniteError: nan at step 31  (trial 0, 2)",
        "  1 x ValueError: no  (trial 1)",
    ]


def test_reasons_are_grouped_the_most_frequent_first_and_the_rare_ones_counted():
    told = [trial(number, "failed", None, reason=f"{'abcdefgh'[number]}: no") for number in range(8)]
    lines = reasons([*told, trial(8, "failed", None, reason="h: no")])
    assert (lines[0], lines[1], lines[-1]) == ("2 x h: no  (trial 7, 8)", "1 x a: no  (trial 0)", "and 2 more reasons")
    assert len(lines) == 7


def test_of_a_sweep_only_its_own_failed_trials_are_told():
    trials = [
        trial(0, "failed", None, reason="RecipeError: no", carried_from="s1/0"),
        trial(1, "failed", None, reason="RecipeError: no"),
        trial(2, "complete", 0.5),
    ]
    assert failures(trials) == ["1 x RecipeError: no  (trial 1)"]
    assert failures(trials[2:]) == []


def test_no_trial_at_all_says_so():
    with pytest.raises(SweepError, match="before any trial started"):
        select([], objectives=MIN)
