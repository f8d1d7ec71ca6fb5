"""Which failure it was, and what follows from it."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest

from raymlops.config.train import FailureRule
from raymlops.errors import (
    DamagedError,
    NonFiniteError,
    RaymlopsError,
    RecipeError,
    StorageError,
    TrainingError,
    UsageError,
)
from raymlops.training.supervision.failure_policy import Decision, Failure, Raised, cause, decide

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

GLOO = "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:29876"


def failure(kind: Any, **fields: Any) -> Failure:
    return Failure(kind, **{"error_type": "RuntimeError", "message": "CUDA error: out of memory", **fields})


def died(message: str) -> Failure:
    return Failure("worker_died", "WorkerDiedError", message)


def verdict(
    one: Failure,
    *rules: tuple[str, str],
    max_restarts: int = 3,
    restarts: int = 0,
    ages_s: Sequence[float] = (),
    failed: Collection[str] = (),
) -> Decision:
    parsed = [FailureRule.model_validate({"match": match, "action": action}) for match, action in rules]
    return decide(
        one,
        rules=parsed,
        max_restarts=max_restarts,
        restarts_without_progress=restarts,
        restart_ages_s=ages_s,
        failed_nodes=failed,
    )


@pytest.mark.parametrize(
    "kind", ["worker_died", "node_died", "mailbox_died", "hang", "error", "environment", "hardware"]
)
def test_what_may_not_happen_again_is_tried_again(kind: str) -> None:
    """Lost processes and nodes, hangs, and errors that are nobody's bug."""
    assert verdict(failure(kind)).action == "retry"


@pytest.mark.parametrize("kind", ["recipe_error", "storage", "memory"])
def test_what_would_happen_again_stops(kind: str) -> None:
    """The same code on the same data fails again, and a full disk stays full."""
    assert verdict(failure(kind)).action == "stop"


def test_the_delay_grows_with_the_restarts_of_the_last_ten_minutes() -> None:
    """0, 1, 5, 15, 60, 60 seconds, although each restart came to a new checkpoint; older ones count no more."""
    found = [verdict(failure("worker_died"), ages_s=[*[100.0] * count, 601, 9999]) for count in range(6)]
    assert [decision.delay_s for decision in found] == [0, 1, 5, 15, 60, 60]
    assert {decision.action for decision in found} == {"retry"}
    assert found[0].reason == "the next attempt may not meet it; retrying now, restart 1 of 3 in a row"
    assert found[1].reason.endswith("retrying in 1 s, restart 1 of 3 in a row, after 1 restart in the last 10 minutes")
    assert found[4].reason.endswith("in 60 s, restart 1 of 3 in a row, after 4 restarts in the last 10 minutes")


def test_the_environment_is_given_time() -> None:
    """5, 15, 60, 60 seconds: a store that throttles at once again would be asked no less."""
    found = [verdict(failure("environment"), ages_s=[100.0] * count) for count in range(4)]
    assert [decision.delay_s for decision in found] == [5, 15, 60, 60]
    assert found[0].reason == "the environment failed, not the recipe; retrying in 5 s, restart 1 of 3 in a row"
    assert found[1].reason.endswith("retrying in 15 s, restart 1 of 3 in a row, after 1 restart in the last 10 minutes")
    assert verdict(failure("environment"), restarts=3).action == "stop"


def test_restarts_are_bounded() -> None:
    """After max_restarts without a new checkpoint it stops and says why."""
    assert [verdict(failure("hang"), max_restarts=2, restarts=count).action for count in range(2)] == ["retry"] * 2
    last = verdict(failure("worker_died"), max_restarts=5, restarts=5)
    assert last.action == "stop"
    assert last.reason == "restarted 5 times without a new checkpoint in between; train.max_restarts allows 5"
    assert verdict(failure("hang"), max_restarts=0).action == "stop"


def test_the_first_rule_that_matches_decides() -> None:
    """It is searched in TYPE: MESSAGE, and wins over the default in both directions."""
    rules = [("ECC|Xid", "exclude_node"), ("^RuntimeError: CUDA", "stop"), ("CUDA", "retry")]
    assert verdict(failure("error"), *rules).action == "stop"
    assert verdict(failure("recipe_error", error_type="RecipeError"), *rules).action == "retry"
    ecc = failure("error", message="uncorrectable ECC error", node_id="n1")
    assert verdict(ecc, *rules).action == "exclude_node"


def test_a_rule_finds_the_workers_log() -> None:
    """What the driver library printed before a process died is in its log alone."""
    died = failure("worker_died", message="exit code 1", log="NVRM: Xid 79, GPU has fallen off the bus", node_id="n1")
    assert verdict(died, ("Xid", "exclude_node")).action == "exclude_node"


def test_a_node_that_is_not_known_cannot_be_excluded() -> None:
    """Then it is tried again, and the reason says so."""
    decision = verdict(failure("error"), ("CUDA", "exclude_node"))
    assert decision.action == "retry"
    assert "the node is not known" in decision.reason


def test_a_rule_that_retries_is_bounded_too() -> None:
    """A rule is no way to restart for ever."""
    assert verdict(failure("recipe_error"), ("CUDA", "retry"), restarts=3).action == "stop"


def raised(message: str, own: RaymlopsError | None = None, *, at_s: float = 0) -> Raised:
    return Raised(type(own).__name__ if own else "RuntimeError", message, own, at_s)


def test_the_rank_that_died_is_the_cause_and_not_the_one_it_tore_away_from() -> None:
    """Rank 1 raises because rank 0 is gone."""
    found = cause({1: raised(GLOO)}, {0: died("its process was killed")}, nodes={0: "a", 1: "b"}, step=7)
    assert (found.kind, found.rank, found.node_id, found.step) == ("worker_died", 0, "a", 7)


def test_a_dead_node_explains_its_workers() -> None:
    """Of two ranks that are gone, the one whose node died is named."""
    lost = {0: died("its process ended"), 1: Failure("node_died", "NodeDiedError", "node b died")}
    assert str(cause({}, lost, nodes={1: "b"}, step=0)) == "rank 1: node b died"


@pytest.mark.parametrize(
    ("own", "kind"),
    [
        (RecipeError("Tiny.loss() raised ValueError: step 3"), "recipe_error"),
        (UsageError("no"), "recipe_error"),
        (NonFiniteError("the loss is nan"), "recipe_error"),
        (DamagedError("trainer.pt is damaged"), "error"),
        (StorageError("disk full"), "storage"),
        (TrainingError("odd"), "error"),
        (None, "error"),
    ],
)
def test_what_a_rank_raised_is_the_cause(own: RaymlopsError | None, kind: str) -> None:
    """Also where a later rank died of it, or was torn away."""
    found = cause(
        {0: raised(str(own), own, at_s=5), 1: raised(GLOO, at_s=1)}, {2: died("exit code 1")}, nodes={}, step=0
    )
    assert (found.kind, found.rank) == (kind, 0)


def test_a_collective_inside_the_recipes_code_is_no_fault_of_the_recipe() -> None:
    """With sharded parameters forward() itself talks to other ranks, and its error comes wrapped as the recipe's."""
    wrapped = RecipeError(f"Tiny.loss() raised RuntimeError: {GLOO}")
    assert cause({1: raised(str(wrapped), wrapped)}, {0: died("killed")}, nodes={}, step=0).kind == "worker_died"
    assert cause({1: raised(str(wrapped), wrapped)}, {}, nodes={}, step=0).kind == "error"


def test_of_two_that_were_torn_the_first_is_named() -> None:
    """Nobody died: perhaps the network did."""
    found = cause({0: raised(GLOO, at_s=2), 1: raised(GLOO, at_s=1)}, {}, nodes={1: "b"}, step=0)
    assert (found.kind, found.rank, found.node_id) == ("error", 1, "b")


def test_a_failure_says_what_it_was_in_one_line() -> None:
    """Its type where it was an exception; what happened where it was none."""
    assert str(failure("error", rank=2, message="CUDA error\nmore")) == "rank 2: RuntimeError: CUDA error"
    assert str(failure("hang", message="no step for 8 s")) == "no step for 8 s"


def caused(own: RaymlopsError, root: BaseException) -> Raised:
    own.__cause__ = root
    return Raised.by(own)


@pytest.mark.parametrize(
    ("one", "kind"),
    [
        (caused(RecipeError("Net.loss() raised"), RuntimeError("CUDA error: uncorrectable ECC error")), "hardware"),
        (Raised.by(RuntimeError("CUDA error: uncorrectable ECC error")), "hardware"),
        (caused(StorageError("cannot be read"), OSError("AWS Error SLOW_DOWN during GetObject")), "environment"),
        (caused(RecipeError("Net.datasets() raised"), ConnectionResetError(104, "reset by peer")), "environment"),
        (caused(StorageError("cannot be used"), OSError(28, "No space left on device")), "storage"),
        (caused(RecipeError("Net.loss() raised"), RuntimeError(GLOO)), "error"),
        (caused(StorageError("the sharded checkpoint cannot be written"), RuntimeError(GLOO)), "error"),
        (caused(NonFiniteError("the loss is nan"), RuntimeError("CUDA error: launch failure")), "recipe_error"),
        (
            raised("", RecipeError("Net.loss() raised ValueError: bad shape at /home/ncclteam/recipe.py:3")),
            "recipe_error",
        ),
        (
            raised("", RecipeError("Net.loss() raised RuntimeError: bad shape at /data/nccl/recipe.py:3")),
            "recipe_error",
        ),
        (caused(RecipeError("Net.loss() raised"), RuntimeError("no weights in /data/nccl/step-3")), "recipe_error"),
        (caused(RecipeError("Net.loss() raised"), ValueError("nccl is no column")), "recipe_error"),
        (raised("", RecipeError("Net.loss() raised RuntimeError: NCCL error in: NCCLUtils.hpp:317")), "environment"),
    ],
    ids=str,
)
def test_the_root_says_what_failed(one: Raised, kind: str) -> None:
    """Whatever is around it, and whatever its path is called."""
    assert cause({0: one}, {}, nodes={}, step=0).kind == kind


def test_what_is_behind_an_exception_survives_the_way_to_the_driver() -> None:
    """Its cause does not."""
    one = caused(RecipeError("Net.datasets() raised"), OSError(5, "Input/output error"))
    there = pickle.loads(pickle.dumps(one))
    assert there.own.__cause__ is None
    assert there.chain == one.chain
    assert cause({0: there}, {}, nodes={}, step=0).kind == "environment"


def test_a_node_whose_hardware_fails_again_is_excluded() -> None:
    """Once may be chance. Only where the other nodes have room, and not where the user has a rule."""
    ecc = failure("hardware", message="CUDA error: uncorrectable ECC error", node_id="n1")
    assert verdict(ecc).action == "retry"
    assert verdict(ecc, failed={"n2"}).action == "retry"
    again = verdict(ecc, failed={"n1"})
    assert (again.action, again.if_room, again.delay_s) == ("exclude_node", True, 5)
    assert again.reason.startswith("the hardware of this node failed before in this run; retrying in 5 s")
    assert verdict(ecc, ("ECC", "retry"), failed={"n1"}).action == "retry"
    assert not verdict(ecc, ("ECC", "exclude_node"), failed={"n1"}).if_room
    logged = failure("worker_died", message="exit code 134", log=f"watchdog: {ecc.message}", node_id="n1")
    assert verdict(logged).delay_s == 5
    assert verdict(logged, failed={"n1"}).action == "exclude_node"
    assert verdict(failure("worker_died", node_id="n1"), failed={"n1"}).action == "retry"
