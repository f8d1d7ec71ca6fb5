"""What a sweep took, and when that is enough."""

from __future__ import annotations

import pytest

from raymlops.config.load import load_data
from raymlops.records import SpentRecord, TrialRecord
from raymlops.tuning.budget import Meter, Tally, good_enough, nothing_left, used_up, words


def section(**sweep):
    return load_data({"project": {"name": "p"}, "recipe": {"import": "tiny:Tiny"}, "sweep": sweep}).spec.sweep


def test_hours_are_those_that_trials_reserved_and_add_up_over_resumes():
    price = {"cpu_hour": 0.1, "gpu_hour": 2.0, "currency": "EUR"}
    before = SpentRecord(wall_s=100.0, cpu_hours=1.0, gpu_hours=0.5)
    now_s = 10.0
    meter = Meter(section(price=price), before=before, clock=lambda: now_s)
    for number, cpus, gpus in ((0, 2.0, 1.0), (1, 2.0, 1.0)):
        meter.reserve(number, cpus=cpus, gpus=gpus)
        meter.hand_out(number)
        meter.start(number)
    now_s = 910.0
    meter.end(0)
    # 2.0 * 0.1 + 1.0 * 2.0
    assert meter.spent == SpentRecord(wall_s=1000.0, cpu_hours=2.0, gpu_hours=1.0, cost=2.2, currency="EUR")


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        ({"timeout_s": 60.0}, "reached its timeout_s of 60 s"),
        ({"max_cpu_hours": 2.0}, "reached its max_cpu_hours of 2 CPU-hours"),
        ({"max_gpu_hours": 1.0}, "reached its max_gpu_hours of 1 GPU-hours"),
        (
            {"max_cost": 5.0, "price": {"cpu_hour": 1.0, "currency": "EUR"}},
            "reached its max_cost of 5 EUR",
        ),
    ],
)
def test_a_budget_is_used_up_at_its_limit(limit, why):
    limits = section(**limit)
    at = SpentRecord(wall_s=60.0, cpu_hours=2.0, gpu_hours=1.0, cost=5.0, currency="EUR")
    below = SpentRecord(wall_s=59.9, cpu_hours=1.9, gpu_hours=0.9, cost=4.9, currency="EUR")
    assert (used_up(limits, at), used_up(limits, below)) == (why, "")


def tally(*trials, mode="max"):
    """Return the tally of trials given as status and value."""
    return Tally.of(
        (TrialRecord(number, {}, status, value) for number, (status, value) in enumerate(trials)), mode=mode
    )


def test_a_target_is_reached_in_the_direction_of_the_metric():
    wanted = section(target=0.9)
    assert good_enough(wanted, tally(("complete", 0.95))) == "reached its target of 0.9 with 0.95"
    assert not good_enough(wanted, tally(("complete", 0.95), mode="min"))
    assert not good_enough(wanted, tally(("pruned", 0.95)))


def test_patience_counts_trials_since_the_best_but_not_those_that_failed():
    wanted = section(patience=3)
    trials = [("complete", 0.5), ("complete", 0.4), ("failed", None), ("pruned", 0.6)]
    assert not good_enough(wanted, tally(*trials))
    assert good_enough(wanted, tally(*trials, ("complete", 0.5))) == "found nothing better in 3 trials (patience 3)"
    assert not good_enough(wanted, tally(*trials, ("complete", 0.7)))


def test_a_tally_counts_a_trial_that_breaks_a_constraint_as_no_best_and_a_carried_one_as_none_of_its_own():
    standing = Tally("max")
    assert standing.take(TrialRecord(0, {}, "complete", 0.5, carried_from="other/3"))
    assert not standing.take(TrialRecord(1, {}, "complete", 0.9, feasible=False))
    assert (standing.ended, standing.since_best) == (1, 1)


def test_words_leave_out_what_was_not_used():
    assert words(SpentRecord(wall_s=3725.4, cpu_hours=0.25)) == "1:02:05, 0.25 CPU-hours"
    priced = SpentRecord(wall_s=5.0, cpu_hours=2.0, gpu_hours=1.0, cost=2.5, currency="EUR")
    assert words(priced) == "0:05, 2 CPU-hours, 1 GPU-hours, 2.5 EUR"


def test_only_a_budget_keeps_repeats_from_going_on():
    """The search has ended all its trials, and found enough."""
    limits = section(num_trials=1, target=0.9, timeout_s=60.0)
    ended, early, late = tally(("complete", 0.95)), SpentRecord(wall_s=59.0), SpentRecord(wall_s=60.0)
    why, _ = nothing_left("s", limits, tally=ended, refused=0, spent=early)
    assert why == "has ended all 1 trials and reached its target of 0.9 with 0.95"
    assert nothing_left("s", limits, tally=ended, refused=0, spent=early, repeats=2) == ("", "")
    assert nothing_left("s", limits, tally=ended, refused=0, spent=late, repeats=2) == (
        "reached its timeout_s of 60 s",
        "raymlops sweep --resume s --extend timeout_s=+60",
    )
