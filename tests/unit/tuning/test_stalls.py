"""When a sweep stands still, and what is told of it."""

from __future__ import annotations

import pytest

from raymlops.cluster.placement import Holder
from raymlops.tuning.stalls import Waiter, stall_report, unreported_stall_s

TWO = (Waiter(4, 100.0, 1.0, 0.0), Waiter(5, 110.0, 1.0, 0.0))
SERVED = Holder("Serve application flights--v7 (x2)", {"CPU": 0.4})
SWEEP = Holder(
    "placement group of job 02000000 (raymlops sweep --config b.yaml): TrialActor in 1 bundles", {"CPU": 1.0}
)


@pytest.mark.parametrize(
    ("now_s", "moved_s", "reported_s", "expected"),
    [
        (129.9, 90.0, None, None),  # the first of them has waited for 29.9 s
        (130.0, 90.0, None, 30.0),
        (150.0, 125.0, None, None),  # something moved 25 s ago
        (155.0, 125.0, None, 30.0),
        (400.0, 90.0, 130.0, None),  # told 270 s ago
        (430.0, 90.0, 130.0, 330.0),  # told 300 s ago: again
        (470.0, 440.0, 430.0, 30.0),  # it moved since, and stands still once more
    ],
)
def test_a_standstill_is_told_after_half_a_minute_and_each_five_minutes(now_s, moved_s, reported_s, expected):
    assert unreported_stall_s(TWO, now_s=now_s, moved_s=moved_s, reported_s=reported_s) == expected


def test_long_epochs_are_no_standstill():
    """All trials that were handed out have a process."""
    assert unreported_stall_s((), now_s=9000.0, moved_s=0.0, reported_s=None) is None


def said(waiters=TWO, *, running=0, total=2.0, free=0.5, own=0.0, holders=(SERVED, SWEEP)):
    nodes = {"total": [{"CPU": total}], "free": [{"CPU": free}], "own": [{"CPU": own}] if own else []}
    return stall_report(waiters, still_s=31.4, running=running, holders=holders, **nodes).text


def test_the_line_says_who_waits_for_what_who_holds_it_and_what_to_do():
    assert said() == (
        "nothing has moved for 31 s: trials 4, 5 wait for 1 CPU each; free: 0.5 CPU of 2 CPU; "
        "held by Serve application flights--v7 (x2): 0.4 CPU; "
        "held by placement group of job 02000000 (raymlops sweep --config b.yaml): TrialActor in 1 bundles: 1 CPU. "
        "The sweep continues as soon as resources are free. "
        "`raymlops status` shows which versions are only kept warm, `raymlops deploy NAME --remove --version N` ends "
        "one. Other jobs release theirs when they end; `ray job stop` stops one."
    )


def test_what_the_sweep_holds_itself_is_said():
    line = said(TWO[:1], running=1, own=1.0, holders=(SERVED,))
    assert "trial 4 waits for 1 CPU; free: 0.5 CPU of 2 CPU; held by this sweep: 1 CPU; held by Serve" in line
    assert "ray job stop" not in line


def test_processes_that_have_their_room_are_starting():
    """One runs, two wait, and three are reserved."""
    assert said(running=1, total=4.0, own=3.0).startswith(
        "nothing has moved for 31 s: trials 4, 5 wait for 1 CPU each, which the sweep has reserved, so their "
        "processes are starting."
    )


def test_what_no_node_has_needs_another_node():
    line = said((Waiter(0, 0.0, 4.0, 1.0),), holders=())
    assert "trial 0 waits for 4 CPU, 1 GPU; free: 0.5 CPU of 2 CPU. No node is large enough" in line
    assert "the sweep continues once one joins" in line


def test_many_waiters_and_holders_are_counted():
    waiters = [Waiter(number, 0.0, 1.0 + number % 2, 0.0) for number in range(7)]
    line = said(waiters, holders=[SERVED] * 8)
    assert "trials 0, 1, 2, 3, 4 and 2 more wait for 1 CPU or 2 CPU;" in line
    assert line.count("held by Serve application") == 5
    assert "and by 3 others." in line


def test_the_workers_of_a_trial_may_be_on_several_nodes():
    """Three CPUs for three workers, on nodes of two."""
    waiter = Waiter(0, 0.0, 3.0, 0.0, workers=3)
    nodes = {"total": [{"CPU": 2.0}] * 2, "free": [{"CPU": 1.0}] * 2, "own": []}
    text = stall_report([waiter], still_s=31.4, running=0, holders=(SERVED,), **nodes).text
    assert "trial 0 waits for 3 CPU; free: 2 CPU of 4 CPU" in text
    assert "No node is large enough" not in text
