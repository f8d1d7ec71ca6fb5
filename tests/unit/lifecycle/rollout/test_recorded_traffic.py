"""Decisions on requests as they come, by what is recorded of them: a small sample of the simulation."""

import pytest
from recorded_traffic import ANSWERED, FAILED, KINDS, REFUSED, WORSE, Kind, counted, recorded, rolled_out
from spread import at_most

from raymlops.config.serve import RolloutSection

SETTINGS = RolloutSection()
SOME = [kind for kind in KINDS if "100 rows" not in kind.name]


def test_requests_that_say_nothing_of_a_version_are_counted_for_none():
    """Those that name the champion, whatever became of them; one whose rows a recipe rejects says as much of either."""
    nothing = [[0, 0, 0], [0, 0, 0]]
    assert counted(recorded(REFUSED)).tolist() == [[0, 0, 0], [1, 1, 0]]
    assert counted(recorded(REFUSED, by_canary=True)).tolist() == [[1, 1, 0], [0, 0, 0]]
    assert counted(recorded(ANSWERED, pinned=True)).tolist() == nothing
    assert counted(recorded(FAILED, pinned=True)).tolist() == nothing
    assert counted(recorded(ANSWERED)).tolist() == [[0, 0, 0], [1, 0, 0]]
    assert counted(recorded(ANSWERED, by_canary=True)).tolist() == [[1, 0, 0], [0, 0, 0]]
    assert counted(recorded(FAILED, by_canary=True)).tolist() == [[1, 1, 0], [0, 0, 0]]


@at_most(30)
@pytest.mark.parametrize("kind", SOME, ids=[kind.name for kind in SOME])
def test_equally_good_versions_pass_whatever_the_traffic(kind, most):
    """Of 100 with these seeds at most two are aborted, of 30 one, and none is held."""
    found = rolled_out(kind, settings=SETTINGS, count=min(most, 100), seed=3)
    assert found.share("abort") <= max(0.02, 1 / most)
    assert found.share("wait") == 0


@pytest.mark.parametrize("worse", WORSE)
@pytest.mark.parametrize("kind", [SOME[1], SOME[-1]], ids=["10 rows", "all of it"])
def test_versions_worse_by_twice_the_margin_do_not_pass(kind, worse):
    found = rolled_out(kind, settings=SETTINGS, count=30, seed=4, **WORSE[worse])
    assert found.share("promote") == 0
    assert found.share("abort") >= 0.98


def test_a_version_that_is_worse_by_late_labels_would_have_passed_before_them():
    """Where labels are not asked for; with them it is found once they come."""
    late = Kind("late", late_s=3 * 3600)
    blind = SETTINGS.model_copy(update={"quality_margin": None})
    assert rolled_out(late, worse=0.1, settings=blind, count=15, seed=5).share("promote") == 1
    assert rolled_out(late, worse=0.1, settings=SETTINGS, count=15, seed=5).share("promote") == 0
