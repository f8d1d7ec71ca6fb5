"""What keeps a challenger back that was asked what the champion was asked."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.answer_loss import AnswerLoss
from raymlops.monitor.replayed import Bounds, Labelled, Replayed, decisions, judge

WHOLE = Replayed(read=100, rows=100.0)


def check(replayed, name, **bounds):
    found = judge(replayed, champion=1, bounds=Bounds(**bounds))
    return next(each for each in found.checks if each.name == name)


def timed(ours, theirs):
    return WHOLE + Replayed(seconds=np.array(ours), champion_seconds=np.array(theirs))


def test_pieces_add_up():
    """Two pieces of 100 rows, 1 and 3 of which failed for two reasons: 4 of 200."""
    one = Replayed(read=100, rows=100, failed=1, failures=("a",), notes=("n",))
    both = one + Replayed(read=100, rows=100, failed=3, failures=("a", "b"), notes=("n",))

    assert (both.read, both.rows, both.failed, both.failures, both.notes) == (200, 200, 4, ("a", "b"), ("n",))
    assert check(both, "answers logged requests").got == 0.02


@pytest.mark.parametrize(("failed", "passed"), [(1.0, True), (1.1, False)])
def test_failed_rows_are_allowed_up_to_a_share(failed, passed):
    """One of 1,000 is allowed."""
    assert check(Replayed(read=1000, rows=1000.0, failed=failed), "answers logged requests").passed is passed


def test_one_that_takes_three_times_as_long_is_refused():
    """Medians of 20 batches, 6 ms a row against 2: the 99th percentile needs 100 batches."""
    found = check(timed([0.006] * 20, [0.002] * 20), "not slower than the champion")

    assert (found.passed, found.got) == (False, pytest.approx(3.0))
    assert found.detail == "p50 6 ms a row against 2, in 20 batches"


def test_a_long_tail_is_seen_in_many_batches():
    """98 of 100 batches take as long, two take ten times: the 99th percentile lies between the last two, 20 ms."""
    found = check(timed([0.002] * 98 + [0.02] * 2, [0.002] * 100), "not slower than the champion")

    assert (found.passed, found.got) == (False, pytest.approx(10.0))


def test_nobody_waits_for_less_than_a_millisecond():
    """.9 ms a row against .1: nine times as long, and quick."""
    assert check(timed([0.0009] * 20, [0.0001] * 20), "not slower than the champion").passed


def test_few_batches_say_nothing_of_time():
    """A note says how many are needed."""
    found = judge(timed([1.0] * 19, [0.001] * 19), champion=1)

    assert found.passed
    assert "19 batches were timed, 20 are needed" in found.notes[0]


def test_losses_are_in_units_of_the_champions():
    """Losses of .2 and .3 in 500 requests: half of the champion's mean loss is lost, for certain."""
    clusters, weights = np.arange(500), np.ones(500)
    labelled = Labelled(np.full(500, 0.2), np.full(500, 0.3), clusters, weights)
    found = check(WHOLE + Replayed(labelled=labelled), "not worse on labelled requests")

    assert (found.passed, found.got) == (False, pytest.approx(0.5))


def test_a_better_one_passes_by_its_labels():
    """The other way round, a third of the champion's loss is gained."""
    labelled = Labelled(np.full(500, 0.3), np.full(500, 0.2), np.arange(500), np.ones(500))
    found = check(WHOLE + Replayed(labelled=labelled), "not worse on labelled requests")

    assert (found.passed, found.got) == (True, pytest.approx(-1 / 3))
    assert found.detail.startswith("better: -0.333 lost by the challenger")


def test_decisions_are_what_is_more_likely():
    """A chance above one half, the largest of several chances in one column or in three, and a class itself."""
    chance = AnswerLoss("probability", None, ("p",))
    assert decisions({"p": np.array([0.4, 0.5])}, chance).tolist() == [False, True]
    vector = AnswerLoss("vector", None, ("p",))
    assert decisions({"p": np.array([[0.1, 0.9], [0.8, 0.2]])}, vector).tolist() == [1, 0]
    columns = AnswerLoss("vector", None, ("a", "b"))
    assert decisions({"a": np.array([0.1, 0.8]), "b": np.array([0.9, 0.2])}, columns).tolist() == [1, 0]
    assert decisions({"c": np.array(["x", "y"])}, AnswerLoss("class", "c")).tolist() == ["x", "y"]


def test_numbers_are_no_decisions():
    """And neither are chances that are missing."""
    assert decisions({"n": np.array([1.0])}, AnswerLoss("number", "n", scale=1.0)) is None
    assert decisions({"p": np.array([None, 0.5], dtype=object)}, AnswerLoss("probability", None, ("p",))) is None
