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


def of_losses(champion, challenger, *, callers=("a", "b"), contradicted=0):
    """Return labelled requests of callers by turns, labelled a minute later; the first few are contradicted."""
    number = len(champion)
    asked, at = np.zeros(number), np.arange(number)
    names = np.array(callers, dtype=object)[at % len(callers)]
    labelled = Labelled(champion, challenger, at, np.ones(number), names, asked, asked + 60, at < contradicted)
    return WHOLE + Replayed(labelled=labelled)


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
    found = check(of_losses(np.full(500, 0.2), np.full(500, 0.3)), "not worse on labelled requests")

    assert (found.passed, found.got) == (False, pytest.approx(0.5))


def test_a_better_one_passes_by_its_labels():
    """The other way round, a third of the champion's loss is gained."""
    found = check(of_losses(np.full(500, 0.3), np.full(500, 0.2)), "not worse on labelled requests")

    assert (found.passed, found.got) == (True, pytest.approx(-1 / 3))
    assert found.detail.startswith("better: -0.333 lost by the challenger")


def test_one_caller_decides_nothing():
    """Of 9 in 10 labels, all false, nothing is made; of 3 in 4 what they say is what all others say: the opposite."""
    lie = np.arange(2000) % 20 < 18
    champion, challenger = np.where(lie, 0.2, 0.3), np.where(lie, 0.3, 0.2)
    found = judge(of_losses(champion, challenger, callers=("evil",) * 18 + ("a", "b")), champion=1)
    assert found.notes[-1] == (
        "Labelled requests are not compared: the key evil sent 90% of the labels, and one may send at most 50%; "
        "bounded, 20% of their weight is left."
    )
    lie = np.arange(2000) % 20 < 15
    champion, challenger = np.where(lie, 0.2, 0.3), np.where(lie, 0.3, 0.2)
    callers = ("evil",) * 15 + ("a", "b", "c", "d", "e")
    found = check(of_losses(champion, challenger, callers=callers), "not worse on labelled requests")
    assert (found.passed, found.got) == (True, pytest.approx(0.0))
    assert found.detail.endswith("; labels of the largest callers weigh less")


def test_contradicted_labels_do_not_count():
    """Four of 100 are left out; of six nothing is made."""
    losses = np.append(np.full(4, 0.9), np.full(96, 0.2)), np.append(np.full(4, 0.1), np.full(96, 0.2))
    found = check(of_losses(*losses, contradicted=4), "not worse on labelled requests")
    assert found.got == 0
    assert found.detail.endswith("; left out: 4 labels contradict each other")
    assert "6% of the labels do not count" in judge(of_losses(*losses, contradicted=6), champion=1).notes[-1]


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
