"""What becomes of a trial whose process is gone."""

from __future__ import annotations

import pytest
from ray import exceptions

from raymlops.errors import PlacesLostError, ProcessSpoiledError, TrialHungError
from raymlops.tuning.execution.failures import MAX_LOSSES, Death, death, decide_restart


def gone(cause, *, init_failed=False):
    """Return Ray's error of an actor that is gone."""
    text = f"The actor died unexpectedly before finishing this task.\n\tpid: 7\n{cause}"
    return exceptions.RayActorError(None, text, init_failed)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (None, "died", "the trial's process died"),
        (
            gone("Worker exits with an exit code 7."),
            "died",
            "the trial's process died: Worker exits with an exit code 7.",
        ),
        (gone("The actor died because its node has died."), "lost", "the trial's node was lost: "),
        (
            exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nAdvice follows."),
            "memory",
            "the trial ran out of memory: Task was killed due to the node running low on memory.",
        ),
        (gone("killed due to the node running low on memory."), "memory", "the trial ran out of memory: "),
        # Ray guesses this of any death.
        (
            gone("It has died. Worker exit detail: It exits with code 2. Some common causes: (1) the OOM killer"),
            "died",
            "the trial's process died: It exits with code 2.",
        ),
        (gone("RecipeImportError: no module", init_failed=True), "raised", "RecipeImportError: no module"),
        (TrialHungError("no step for 3 s, in loss()"), "hung", "TrialHungError: no step for 3 s, in loss()"),
        (PlacesLostError("no places"), "lost", "PlacesLostError: no places"),
        (ProcessSpoiledError("the trial before hangs"), "spoiled", "ProcessSpoiledError: the trial before hangs"),
        (ValueError("the job was preempted"), "raised", "ValueError: the job was preempted"),
    ],
)
def test_a_death_is_read_from_what_ray_says(error, kind, reason):
    read = death(error)
    assert read.kind == kind
    assert read.reason.startswith(reason)


@pytest.mark.parametrize("kind", ["raised", "hung", "memory"])
def test_what_would_happen_again_is_not_tried_again(kind):
    assert not decide_restart(Death(kind, "why"), previous=0, max_restarts=5).restart


def test_a_process_that_died_is_tried_again_as_often_as_the_configuration_says():
    died = Death("died", "why")
    assert decide_restart(died, previous=0, max_restarts=1).restart
    ended = decide_restart(died, previous=1, max_restarts=1)
    assert (ended.restart, ended.reason) == (False, "why (2 times)")
    assert decide_restart(died, previous=0, max_restarts=0).reason == "why"


def test_lost_nodes_count_apart_and_not_for_ever():
    lost = Death("lost", "why")
    assert decide_restart(lost, previous=MAX_LOSSES - 1, max_restarts=0).restart
    assert not decide_restart(lost, previous=MAX_LOSSES, max_restarts=9).restart


def test_what_the_trial_before_has_left_is_no_fault_of_this_one():
    assert decide_restart(Death("spoiled", "why"), previous=9, max_restarts=0).restart
