"""Configurations that were trained with several seeds, by hand; and how often the better one is chosen."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from raymlops.config.sweep import Threshold
from raymlops.records import Objective, TrialRecord
from raymlops.tuning.study.ranking import candidates, planned, ranking, verdict
from raymlops.tuning.study.selection import pareto, winner

AUC = Objective("validation/auc", "max")
LOSS = Objective("validation/loss", "min")


def trial(number, value, *, repeat_of=None, status="complete", **details):
    seed = None if repeat_of is None else number
    params = {"train.lr": 0.1 if repeat_of is None else 0.2} | details.pop("params", {})
    return TrialRecord(
        number=number, params=params, status=status, value=value, repeat_of=repeat_of, seed=seed, epochs=3, **details
    )


TWO = [
    trial(0, 0.90),
    trial(1, 0.92),
    trial(2, 0.94, repeat_of=0),
    trial(3, 0.84, repeat_of=1),
    trial(4, 0.92, repeat_of=0),
    trial(5, 0.88, repeat_of=1),
]
"""Means 0.92 and 0.88, each with a standard deviation of 0.02 and 0.04."""


def test_the_best_mean_wins_and_not_the_best_run_of_the_search():
    first, second = ranking(TWO, objectives=[AUC])
    assert (first.number, first.trials) == (0, (0, 2, 4))
    assert (first.mean, first.std, first.error) == pytest.approx((0.92, 0.02, 0.02 / math.sqrt(3)))
    assert (second.number, second.mean, second.std) == pytest.approx((1, 0.88, 0.04))


def test_how_sure_the_choice_is_follows_from_the_pooled_noise_of_seeds():
    """s^2 = (2 * 0.02^2 + 2 * 0.04^2) / 4 = 0.001, t = 0.04 / sqrt(0.001 * 2/3) = 1.549 with 4 degrees of freedom.

    There F(t) = 1/2 + t / sqrt(t^2 + 4) * (1 + 2 / (t^2 + 4)) / 2 = 0.902.
    """
    first, second = ranking(TWO, objectives=[AUC])
    t = 0.04 / math.sqrt(0.001 * 2 / 3)
    root = t / math.sqrt(t * t + 4)
    assert second.probability == pytest.approx(0.5 + root * (1 + 2 / (t * t + 4)) / 2)
    assert first.probability is None
    assert verdict([first, second], metric="validation/auc") == (
        "trial 0: validation/auc 0.92 ± 0.012 (3 seeds, 0.93 without the search's), better with a probability of 0.90 "
        "than trial 1: 0.88 ± 0.023 (3 seeds, 0.86 without the search's)"
    )


def test_seeds_that_had_other_rows_are_told_of():
    """By the fingerprints of one configuration's runs, of which the search's may be unknown; others have their own."""
    told = "Their rows differ by seed, so that the best run may have the easiest split"
    for marks, differ in (("ababab", False), ("a.abab", False), ("......", False), ("abcdef", True), (".babcb", True)):
        trials = [replace(run, fingerprint=mark.strip(".")) for run, mark in zip(TWO, marks, strict=True)]
        ranked = ranking(trials, objectives=[AUC])
        assert (told in verdict(ranked, metric="validation/auc")) is differ, marks


def test_of_a_metric_that_falls_the_lowest_mean_wins():
    first, second = ranking(TWO, objectives=[LOSS])
    assert (first.number, second.number) == (1, 0)
    assert winner(TWO, objectives=[LOSS]).number == 3


def test_the_run_that_is_registered_is_the_winner_s_best_one_by_validation():
    best = winner(TWO, objectives=[AUC])
    assert (best.number, best.repeat_of, best.settings) == (2, 0, {"train.lr": 0.2, "train.seed": 2})


def test_seeds_that_change_nothing_leave_no_doubt():
    trials = [trial(0, 0.9), trial(1, 0.8), trial(2, 0.9, repeat_of=0), trial(3, 0.8, repeat_of=1)]
    assert ranking(trials, objectives=[AUC])[1].probability == 1.0
    assert ranking([trial(0, 0.9), trial(1, 0.9), *trials[2:3], trial(3, 0.9, repeat_of=1)], objectives=[AUC])[
        1
    ].probability == pytest.approx(0.5)


@pytest.mark.parametrize("end", [("failed", None), ("pruned", 0.99), ("complete", math.nan)])
def test_a_repeat_that_did_not_end_whole_counts_for_nothing_and_is_said(end):
    status, value = end
    trials = [*TWO, trial(6, value, repeat_of=0, status=status)]
    first, _ = ranking(trials, objectives=[AUC])
    assert (first.trials, first.failed) == ((0, 2, 4), 1)
    assert first.words() == "0.92 ± 0.012 (3 seeds, 0.93 without the search's, 1 failed)"


def test_a_configuration_whose_repeats_all_failed_comes_last():
    trials = [trial(0, 0.99), trial(1, 0.8), trial(2, None, repeat_of=0, status="failed"), trial(3, 0.81, repeat_of=1)]
    assert [each.number for each in ranking(trials, objectives=[AUC])] == [1, 0]
    assert winner(trials, objectives=[AUC]).number == 3


def test_where_every_repeat_failed_the_search_decides():
    trials = [trial(0, 0.99), trial(1, 0.8), trial(2, None, repeat_of=0, status="failed")]
    ((only,),) = [ranking(trials, objectives=[AUC])]
    assert (only.number, only.error, only.failed) == (0, None, 1)
    assert winner(trials, objectives=[AUC]).number == 0


def test_repeats_are_never_chosen_as_trials_of_the_search():
    trials = [trial(0, None, status="failed"), trial(1, 0.5), trial(2, 0.9, repeat_of=0)]
    assert winner(trials, objectives=[AUC]).number == 1
    assert pareto(trials, objectives=[AUC, LOSS]) == ()


def test_constraints_are_kept_by_the_means():
    """0.5 and 0.7 latency are 0.6 on the average; the run that is registered keeps the constraint itself."""

    def timed(number, value, latency, **more):
        return trial(number, value, metrics={"latency": latency}, feasible=latency <= 0.65, **more)

    trials = [
        timed(0, 0.9, 0.5),
        timed(1, 0.8, 0.5),
        timed(2, 0.95, 0.7, repeat_of=0),
        timed(3, 0.81, 0.5, repeat_of=1),
    ]
    for most, chosen in ((0.65, 0), (0.55, 3)):
        limits = {"latency": Threshold(max=most)}
        assert winner(trials, objectives=[AUC], constraints=limits).number == chosen


def test_a_configuration_whose_mean_breaks_a_constraint_does_not_win_by_the_run_of_the_search():
    """Another one does, which has no repeats; where there is none, the search decides."""
    trials = [trial(0, 0.9, metrics={"latency": 0.5}), trial(1, 0.8, metrics={"latency": 0.5})]
    trials.append(trial(2, 0.9, metrics={"latency": 0.9}, feasible=False, repeat_of=0))
    limits = {"latency": Threshold(max=0.6)}
    assert winner(trials, objectives=[AUC], constraints=limits).number == 1
    assert winner([trials[0], trials[2]], objectives=[AUC], constraints=limits).number == 0


def test_candidates_are_the_best_complete_configurations_each_once():
    trials = [
        trial(0, 0.9, params={"a": 1}),
        trial(1, 0.9, params={"a": 1}),
        trial(2, 0.99, status="pruned", params={"a": 2}),
        trial(3, 0.99, feasible=False, params={"a": 3}),
        trial(4, 0.95, repeat_of=0, params={"a": 4}),
        trial(5, 0.8, params={"a": 5}),
        trial(6, 0.7, params={"a": 6}),
    ]
    assert [each.number for each in candidates(trials, objective=AUC, top=2)] == [0, 5]


def test_each_candidate_has_its_second_seed_before_one_has_its_third():
    chosen = [trial(7, 0.9), trial(3, 0.8)]
    found = [(each.number, seed) for each, seed in planned(chosen, seeds=3, first=2**32 - 1)]
    assert found == [(7, 0), (3, 0), (7, 1), (3, 1)]


@pytest.mark.parametrize(("seeds", "expected"), [(1, 0.638), (4, 0.760), (8, 0.841)])
def test_the_better_one_of_two_that_differ_by_half_a_standard_deviation_is_chosen_more_often(seeds, expected):
    """Phi(0.5 * sqrt(n / 2)) for n seeds; of 1,000 sweeps, within three standard deviations of that share."""
    rng = random.Random(seeds)
    rounds, right, sure = 1000, 0, 0.0
    for _ in range(rounds):
        values = [(0.5, rng.gauss(0.5, 1.0)), (0.0, rng.gauss(0.0, 1.0))]
        trials = [trial(number, value) for number, (_, value) in enumerate(values)]
        trials += [
            trial(number, rng.gauss(values[number % 2][0], 1.0), repeat_of=number % 2) for number in range(2, 2 * seeds)
        ]
        best = winner(trials, objectives=[AUC])
        right += (best.number if best.repeat_of is None else best.repeat_of) == 0
        ranked = ranking(trials, objectives=[AUC])
        sure += ranked[1].probability if ranked else 0.0
    assert abs(right / rounds - expected) < 3 * math.sqrt(expected * (1 - expected) / rounds)
    if seeds > 1:  # how sure it says to be
        assert abs(sure - right) / rounds < 0.06
