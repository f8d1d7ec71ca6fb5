"""What an event of a sweep shows in a log line and in a table."""

from __future__ import annotations

import io

from rich.console import Console

from raymlops.display import logfmt
from raymlops.tuning.reporting.progress import Board, SweepEvent, TrialView

BEST = TrialView(1, {"train.lr": 0.0123456, "train.optimizer": "sgd"}, "complete", 5, 0.91234567)
TRIALS = (TrialView(0, {"train.lr": 0.5}, "failed"), BEST, TrialView(2, {"train.lr": 0.1}, "running", 2, 0.8))


def event(kind="epoch", trials=TRIALS, best=BEST, eta_s=70.4, **more):
    board = Board()
    for view in trials:
        board.put(view, best=view is best)
    return SweepEvent(
        kind,
        2,
        board.counts,
        board.rows(),
        total=8,
        metric="validation/auc",
        best=best,
        elapsed_s=65.2,
        eta_s=eta_s,
        **more,
    )


def test_a_line_counts_trials_by_state_and_names_the_best():
    assert logfmt(event()) == (
        "event=sweep trials=2/8 running=1 waiting=0 complete=1 pruned=0 failed=1 metric=validation/auc "
        "best=0.91235 best_trial=1 train.lr=0.01235 train.optimizer=sgd elapsed_s=65.2 eta_s=70"
    )


def test_a_line_before_any_trial_is_complete_has_no_best():
    line = logfmt(event(trials=TRIALS[2:], best=None, eta_s=None))
    assert line == "event=sweep trials=0/8 running=1 waiting=0 complete=0 pruned=0 failed=0 elapsed_s=65.2"


def test_the_headline_says_how_long_it_took_and_will_take():
    assert event().headline() == "2/8 trials  1 running  1 complete  1 failed  1:05  1:10 left"


def test_the_table_holds_the_best_the_running_and_the_latest_trials():
    old = tuple(TrialView(number, {}, "pruned") for number in range(30))
    best, running = TrialView(30, {}, "complete", 3, 0.9), TrialView(42, {}, "running")
    later = tuple(TrialView(number, {}, "pruned") for number in range(31, 42))
    shown = [view.number for view in event(trials=(*old, best, *later, running), best=best).rows]
    assert shown == [30, 34, 35, 36, 37, 38, 39, 40, 41, 42]


def test_a_trial_is_counted_in_its_latest_state():
    board = Board()
    for state in ("waiting", "running", "running", "complete"):
        board.put(TrialView(0, {}, state))
    assert board.counts == {"running": 0, "waiting": 0, "complete": 1, "pruned": 0, "failed": 0}


def test_the_headline_ends_with_what_it_cost():
    assert event(kind="end", cost="0:01:05, 0.2 EUR").headline().endswith("1:05  0:01:05, 0.2 EUR")


def test_a_message_is_a_line_of_its_own():
    assert logfmt(SweepEvent("message", message="held by others")) == 'event=sweep msg="held by others"'


def test_the_table_shows_parameters_as_they_are():
    view = TrialView(0, {"recipe.config.kind": "[b]<i>"}, "running")
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(event(trials=(view, BEST)).renderable())
    text = console.export_text()
    assert "kind=[b]<i>" in text
    assert "validation/auc" in text
    assert "lr=0.01235  optimizer=sgd" in text
