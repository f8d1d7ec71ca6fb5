"""What becomes of a trial whose process is gone."""

from __future__ import annotations

import pytest
from ray import exceptions

from raymlops.tuning.fate import fate
from raymlops.tuning.watchdog import TrialHungError


def died(cause):
    """Return Ray's error of an actor that is gone."""
    return exceptions.RayActorError(None, f"The actor died unexpectedly before finishing this task.\n\tpid: 7\n{cause}")


DIED = died("Worker exits with an exit code 7.")


def test_a_process_that_died_is_tried_again_as_often_as_the_configuration_says():
    first, second = (fate(DIED, restarts=restarts, max_restarts=1) for restarts in (0, 1))
    assert (first.again, first.counts) == (True, True)
    assert not second.again
    assert second.reason.startswith("the trial's process died: Worker exits with an exit code 7.")
    assert second.reason.endswith("(2 times)")


def test_a_lost_node_costs_no_restart():
    error = died("The actor died because its node has died.")
    decision = fate(error, restarts=9, max_restarts=0)
    assert (decision.again, decision.counts) == (True, False)


@pytest.mark.parametrize(
    "error",
    [
        exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."),
        died("Task was killed due to the node running low on memory."),
    ],
)
def test_one_that_ran_out_of_memory_failed(error):
    decision = fate(error, restarts=0, max_restarts=5)
    assert not decision.again
    assert decision.reason.startswith("the trial ran out of memory: ")


def test_a_death_that_ray_lists_the_common_causes_of_is_none_for_want_of_memory():
    error = died("Worker unexpectedly exits. Some common causes include: (1) killed by the OOM killer, (2) a crash.")
    assert fate(error, restarts=0, max_restarts=1).again


def test_one_that_hung_failed_with_what_it_was_doing():
    decision = fate(TrialHungError("no step for 3 s, in loss()"), restarts=0, max_restarts=5)
    assert (decision.again, decision.reason) == (False, "TrialHungError: no step for 3 s, in loss()")


def test_what_its_own_code_raised_is_its_reason():
    decision = fate(ValueError("no such thing"), restarts=0, max_restarts=5)
    assert (decision.again, decision.reason) == (False, "ValueError: no such thing")


def test_a_death_that_nobody_can_explain_counts():
    assert fate(None, restarts=0, max_restarts=1).counts


def test_a_process_that_could_not_begin_is_not_tried_again():
    error = exceptions.RayActorError(None, "creation task failed\nRecipeImportError: no module", True)
    decision = fate(error, restarts=0, max_restarts=5)
    assert (decision.again, decision.reason) == (False, "RecipeImportError: no module")
