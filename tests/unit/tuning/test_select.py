"""The winner of a sweep, by hand."""

from __future__ import annotations

import math

import pytest

from raymlops.errors import SweepError
from raymlops.records import TrialRecord
from raymlops.tuning.select import select


def trial(number, status, value, *, epochs=3, reason=""):
    return TrialRecord(number=number, params={}, status=status, value=value, epochs=epochs, reason=reason)


@pytest.mark.parametrize(("mode", "winner"), [("max", 1), ("min", 2)])
def test_the_best_value_in_the_mode_wins(mode, winner):
    trials = [trial(0, "complete", 0.5), trial(1, "complete", 0.9), trial(2, "complete", 0.1)]
    assert select(trials, mode=mode).number == winner


def test_failed_and_not_finite_trials_never_win():
    trials = [
        trial(0, "failed", 0.99),
        trial(1, "complete", math.nan),
        trial(2, "complete", math.inf),
        trial(3, "complete", None),
        trial(4, "complete", 0.2),
    ]
    assert select(trials, mode="max").number == 4


def test_a_stopped_trial_loses_to_a_complete_one_however_good_it_looked():
    trials = [trial(0, "pruned", 0.99, epochs=1), trial(1, "complete", 0.7)]
    assert select(trials, mode="max").number == 1


def test_a_stopped_trial_wins_where_none_is_complete():
    trials = [trial(0, "pruned", 0.6), trial(1, "pruned", 0.8), trial(2, "failed", None, reason="x")]
    assert select(trials, mode="max").number == 1


def test_of_equal_values_fewer_epochs_win_then_the_lower_number():
    trials = [
        trial(7, "complete", 0.8, epochs=4),
        trial(9, "complete", 0.8, epochs=2),
        trial(8, "complete", 0.8, epochs=2),
    ]
    assert select(trials, mode="max").number == 8


def test_nothing_usable_says_how_each_failed_grouped():
    reasons = ["NonFiniteError: nan at step 31", "ValueError: no", "NonFiniteError: nan at step 7"]
    trials = [trial(number, "failed", None, reason=reason) for number, reason in enumerate(reasons)]
    with pytest.raises(SweepError) as caught:
        select(trials, mode="max")
    assert caught.value.message.splitlines() == [
        "none of 3 trials gave a usable value",
        "  2 x NonFiniteError: nan at step 31  (trial 0, 2)",
        "  1 x ValueError: no  (trial 1)",
    ]


def test_no_trial_at_all_says_so():
    with pytest.raises(SweepError, match="before any trial started"):
        select([], mode="min")
