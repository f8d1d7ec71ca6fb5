"""Which failure is behind what Ray Train raised, without a cluster that could say more."""

from __future__ import annotations

from ray.exceptions import ActorDiedError

from raymlops.errors import RecipeError
from raymlops.training.supervision.diagnosis import diagnose
from raymlops.training.supervision.failure_policy import Raised
from raymlops.training.supervision.messages import Inbox, Info


class WorkerGroupError(Exception):
    """Ray Train's, with the failure of each rank."""

    def __init__(self, **worker_failures: BaseException) -> None:
        super().__init__("the group failed")
        self.worker_failures = {int(rank[1:]): failure for rank, failure in worker_failures.items()}


def test_what_a_rank_raised_is_raised_as_it_is() -> None:
    """With the rank, its node and the exception itself."""
    own = RecipeError("loss() raised ValueError: no")
    inbox = Inbox(raised={1: Raised.by(own)}, infos={1: Info(7, "abc", "host")})
    failure = diagnose(WorkerGroupError(r1=own), inbox=inbox, step=5)
    assert (failure.own, failure.rank, failure.node_id, failure.step) == (own, 1, "abc", 5)


def test_a_process_that_died_is_named() -> None:
    """By its number and its host, if it had sent them."""
    failure = diagnose(WorkerGroupError(r0=ActorDiedError()), inbox=Inbox(infos={0: Info(7, "abc", "host")}), step=5)
    assert (failure.kind, failure.rank, failure.own) == ("worker_died", 0, None)
    assert failure.message.startswith("its process 7 on host died: ")
    assert str(diagnose(WorkerGroupError(r0=ActorDiedError()), inbox=Inbox(), step=5)).startswith("rank 0: its process")


def test_a_death_of_no_rank_was_at_the_start() -> None:
    """Of a process that had no rank yet."""
    assert diagnose(ActorDiedError(), inbox=Inbox(), step=5).kind == "worker_died"


def test_an_exception_of_raymlops_is_kept() -> None:
    """Also where it is of no rank."""
    own = RecipeError("no")
    failure = diagnose(own, inbox=Inbox(), step=5)
    assert (failure.kind, failure.own, failure.step) == ("error", own, 5)
