import numpy as np
import pytest

from raymlops.monitor.skill.clusters import Moments
from raymlops.monitor.skill.expected import Window
from raymlops.monitor.skill.slices import judge_slices


def window(lost, *, requests=400, error=0.0):
    """Return a slice whose requests lost so much of skill, half of them .1 more and half .1 less."""
    moments = Moments.of(lost + 0.1 * np.tile([-1.0, 1.0], requests // 2))
    return Window(loss=0.3 + lost, reference=1.0, expected=0.3, lost=moments, error=error)


def test_the_slice_that_lost_skill_is_named_first():
    """.1 at an error of .005, among those that lost nothing."""
    found = judge_slices({"AA": window(0.0), "B6": window(0.1), "DL": window(-0.02)})
    assert [one.name for one in found] == ["B6", "AA", "DL"]
    assert [one.flagged for one in found] == [True, False, False]
    assert found[0].skill == pytest.approx(0.6)
    assert found[0].expected == pytest.approx(0.7)
    assert 0.09 < found[0].low < 0.1 < found[0].high < 0.11


def test_many_slices_are_no_reason_to_name_one():
    """A score of 2.2 is a p-value of .014, which is .57 of forty."""
    one = window(0.01 + 2.2 * 0.005)
    assert judge_slices({"B6": one})[0].flagged
    found = judge_slices({"B6": one} | {f"C{at}": window(0.0) for at in range(39)})
    assert not any(each.flagged for each in found)
    assert min(each.p for each in found) == pytest.approx(40 * 0.0139, rel=0.05)


def test_few_requests_are_not_judged():
    """38, however bad; nor do they take from the others' level."""
    found = judge_slices({"AA": window(0.9, requests=38), "B6": window(0.05)})
    assert [(one.name, one.p is None) for one in found] == [("B6", False), ("AA", True)]


def test_the_error_of_the_references_slice_counts():
    """.1 may be the chance of reference rows whose error is .08."""
    assert not judge_slices({"AA": window(0.1, error=0.08)})[0].flagged


def test_no_slice_is_none():
    """An empty column."""
    assert judge_slices({}) == []
