"""What a sweep took, and when that is enough."""

from __future__ import annotations

import pytest

from raymlops.config.load import load_data
from raymlops.records import SpentRecord
from raymlops.tuning.budget import good_enough, spent, used_up, words


def spec(*, train=None, **sweep):
    return load_data(
        {
            "project": {"name": "p"},
            "recipe": {"import": "tiny:Tiny"},
            "train": {"cpus_per_worker": 0.5, "gpus_per_worker": 0.25, **(train or {})},
            "sweep": sweep,
        }
    ).spec


def test_hours_are_those_that_trials_reserved_and_add_up_over_resumes():
    price = {"cpu_hour": 0.1, "gpu_hour": 2.0, "currency": "EUR"}
    before = SpentRecord(wall_s=100.0, cpu_hours=1.0, gpu_hours=0.5)
    # Two hours of trials: 2 * 0.5 CPU-hours and 2 * 0.25 GPU-hours more; 2.0 * 0.1 + 1.0 * 2.0.
    got = spent(before, wall_s=50.0, trial_s=7200.0, spec=spec(price=price))
    assert got == SpentRecord(wall_s=150.0, cpu_hours=2.0, gpu_hours=1.0, cost=2.2, currency="EUR")


def test_a_trial_on_several_workers_reserves_as_often():
    got = spent(SpentRecord(), wall_s=0.0, trial_s=3600.0, spec=spec(workers_per_trial=4))
    assert (got.cpu_hours, got.gpu_hours) == (2.0, 1.0)


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
    section = spec(**limit).sweep
    at = SpentRecord(wall_s=60.0, cpu_hours=2.0, gpu_hours=1.0, cost=5.0, currency="EUR")
    below = SpentRecord(wall_s=59.9, cpu_hours=1.9, gpu_hours=0.9, cost=4.9, currency="EUR")
    assert (used_up(section, at), used_up(section, below)) == (why, "")


def test_a_target_is_reached_in_the_direction_of_the_metric():
    section = spec(target=0.9).sweep
    assert good_enough(section, mode="max", best=0.95, since_best=0) == "reached its target of 0.9 with 0.95"
    assert not good_enough(section, mode="min", best=0.95, since_best=0)
    assert not good_enough(section, mode="max", best=None, since_best=0)


def test_patience_counts_trials_since_the_best():
    section = spec(patience=3).sweep
    assert not good_enough(section, mode="max", best=0.5, since_best=2)
    assert good_enough(section, mode="max", best=0.5, since_best=3) == "found nothing better in 3 trials (patience 3)"


def test_words_leave_out_what_was_not_used():
    assert words(SpentRecord(wall_s=3725.4, cpu_hours=0.25)) == "1:02:05, 0.25 CPU-hours"
    priced = SpentRecord(wall_s=5.0, cpu_hours=2.0, gpu_hours=1.0, cost=2.5, currency="EUR")
    assert words(priced) == "0:00:05, 2 CPU-hours, 1 GPU-hours, 2.5 EUR"
