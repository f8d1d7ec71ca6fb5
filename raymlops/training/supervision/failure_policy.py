"""The failure policy: retry, retry without a node, or stop; and which of several failures is the cause.

Pure: evidence of ranks and cluster in, a decision with its reason out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from raymlops.errors import DamagedError, NonFiniteError, RaymlopsError, StorageError, UnreachableError, UsageError
from raymlops.training.supervision.transient import Link, behind, chain_of, classify

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from raymlops.config.train import FailureRule

Kind = Literal[
    "worker_died", "node_died", "mailbox_died", "hang", "recipe_error", "memory", "error", "storage", "environment",
    "hardware", "places_lost",
]  # fmt: skip

LATELY_S = 600.0
DELAYS_S = (0.0, 1.0, 5.0, 15.0, 60.0)
"""Backoff before a restart with 0, 1, 2, 3 and more restarts in the last ``LATELY_S``.

Regardless of progress in between: a node may fail shortly after each checkpoint, for days.
"""
_PAUSE = 2
"""A failure of environment or hardware backs off as after this many restarts: it may take a while to pass."""
_MEMORY = (
    "it would run out again: lower train.batch_size or train.eval_batch_size, or raise train.accumulate; where others "
    "share the GPU, train.on_failure can retry"
)
_WHY: dict[Kind, tuple[Literal["retry", "stop"], str]] = {
    "recipe_error": ("stop", "the same would happen again"),
    "storage": ("stop", "the same would happen again"),
    "memory": ("stop", _MEMORY),
    "environment": ("retry", "the environment failed, not the recipe"),
    "hardware": ("retry", "the hardware failed, not the recipe"),
}
_ELSE: tuple[Literal["retry", "stop"], str] = ("retry", "the next attempt may not meet it")
_TORN = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket (closed|timeout)|\bgloo\b|\bnccl\b|recvValue failed"
    r"|store.*(timeout|timed out)|remote process exited|collective operation|process ?group|Dist(Backend|Network)Error",
    re.IGNORECASE,
)
"""How a collective words that its peer died: a consequence, hardly ever a cause."""
_COLLECTIVE = {"RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError", "CheckpointException"}
"""The exception types of such messages."""
_PATH = re.compile(r"(?<![\w.\]])/[^\s:'\"\]]+")


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended, or a rank of it; ``rank`` and ``node_id`` if known, ``log`` a worker's last lines."""

    kind: Kind
    error_type: str
    message: str
    rank: int | None = None
    node_id: str = ""
    step: int = 0
    log: str = ""
    own: RaymlopsError | None = None
    """The exception itself where it is one of raymlops."""

    @property
    def of_hardware(self) -> bool:
        """Return whether hardware failed; where NCCL ended the process for it, its log says so."""
        logged = self.kind == "worker_died" and classify([Link(("RuntimeError",), self.log)])[0] == "hardware"
        return logged or self.kind == "hardware"

    def __str__(self) -> str:
        where = "" if self.rank is None else f"rank {self.rank}: "
        lines = self.message.strip().splitlines() or [""]
        return {
            "worker_died": f"{where}{lines[0]}",
            "node_died": f"{where}{lines[0]}",
            "hang": lines[0],
            "mailbox_died": lines[0],
            "places_lost": lines[0],
        }.get(self.kind, f"{where}{self.error_type}: {lines[0]}")


@dataclass(frozen=True)
class Decision:
    """What to do, why, and the backoff in seconds."""

    action: Literal["retry", "exclude_node", "stop"]
    reason: str
    delay_s: float = 0.0
    if_room: bool = False
    """Exclude the node only where the others have room for the workers."""


@dataclass(frozen=True)
class Raised:
    """An exception of a rank; ``own`` is the exception itself where it is one of raymlops. ``at_s`` orders them.

    ``chain`` are its causes, the root first: a pickled exception loses its ``__cause__``.
    """

    error_type: str
    message: str
    own: RaymlopsError | None = None
    at_s: float = 0.0
    log: str = ""
    chain: tuple[Link, ...] = ()

    @classmethod
    def by(cls, error: BaseException, *, log: str = "") -> Self:
        """Describe an exception without Ray's wrappers."""
        inner = next((each for each in behind(error) if isinstance(each, RaymlopsError)), None)
        shown = error if inner is None else inner
        return cls(type(shown).__name__, str(shown), inner, log=log, chain=chain_of(error))

    @property
    def links(self) -> tuple[Link, ...]:
        """Return the chain, or what the message says of it."""
        message = self.message if self.own is None else self.own.message
        return self.chain or (Link.in_text(self.error_type, message),)


def decide(
    failure: Failure,
    *,
    rules: Sequence[FailureRule],
    max_restarts: int,
    restarts_without_progress: int,
    restart_ages_s: Sequence[float],
    failed_nodes: Collection[str] = (),
) -> Decision:
    """Decide by the first rule whose pattern is found in ``TYPE: MESSAGE`` or the log, else by the kind of failure.

    ``restarts_without_progress`` counts those since the newest checkpoint; it bounds rules that retry, too.
    ``restart_ages_s`` are the ages of the run's restarts; recent ones decide the backoff. ``failed_nodes`` are those
    whose hardware failed before in this run.
    """
    text = f"{failure.error_type}: {failure.message}\n{failure.log}"
    rule = next((rule for rule in rules if re.search(rule.match, text)), None)
    again = rule is None and failure.of_hardware and failure.node_id in failed_nodes
    action: Literal["retry", "exclude_node", "stop"]
    if rule is not None:
        action, why = rule.action, f"train.on_failure {rule.match!r} says {rule.action}"
    elif again:
        action, why = "exclude_node", "the hardware of this node failed before in this run"
    else:
        action, why = _WHY.get("hardware" if failure.of_hardware else failure.kind, _ELSE)
    if action == "stop":
        return Decision("stop", why)
    if restarts_without_progress >= max_restarts:
        times = "once" if restarts_without_progress == 1 else f"{restarts_without_progress} times"
        tried = f"restarted {times} without a new checkpoint in between" if restarts_without_progress else "no restart"
        return Decision("stop", f"{tried}; train.max_restarts allows {max_restarts}")
    if action == "exclude_node" and not failure.node_id:
        action, why = "retry", f"{why}, but the node is not known"
    lately = sum(age_s <= LATELY_S for age_s in restart_ages_s)
    pause = _PAUSE if failure.kind == "environment" or failure.of_hardware else 0
    delay_s = DELAYS_S[min(lately + pause, len(DELAYS_S) - 1)]
    reason = f"{why}; retrying {f'in {delay_s:g} s' if delay_s else 'now'}, restart {restarts_without_progress + 1} "
    reason += f"of {max_restarts} in a row"
    if lately:
        before = "1 restart" if lately == 1 else f"{lately} restarts"
        reason += f", after {before} in the last {LATELY_S / 60:g} minutes"
    return Decision(action, reason, delay_s, if_room=again and action == "exclude_node")


def cause(raised: Mapping[int, Raised], lost: Mapping[int, Failure], *, nodes: Mapping[int, str], step: int) -> Failure:
    """Return the root cause of what happened to the ranks. ``lost`` holds those whose process or node died.

    An exception other than a broken collective is the cause; else a lost rank; else the first broken collective.
    ``nodes`` maps ranks to nodes. At least one of ``raised`` and ``lost`` holds a rank.
    """
    order = sorted(raised, key=lambda rank: (raised[rank].at_s, rank))
    causes = [rank for rank in order if not is_torn(raised[rank])] or ([] if lost else order)
    if causes:
        rank, one = causes[0], raised[causes[0]]
        failure = Failure(kind_of(one), one.error_type, one.message, log=one.log, own=one.own)
    else:
        rank = min(lost, key=lambda rank: (lost[rank].kind != "node_died", rank))
        failure = lost[rank]
    return replace(failure, rank=rank, node_id=nodes.get(rank, ""), step=step)


def kind_of(raised: Raised) -> Kind:
    """Return the kind of failure of an exception, by its root cause."""
    if isinstance(raised.own, NonFiniteError):
        return "recipe_error"
    match classify(raised.links)[0]:
        case "card_bug":
            return "recipe_error"
        case "gpu":
            return "environment"
        case "environment" | "hardware" | "memory" as found:
            return found
    if is_torn(raised):
        return "error"
    match raised.own:
        case DamagedError():
            return "error"  # the next attempt resumes from the checkpoint before
        case StorageError():
            return "storage"
        case UnreachableError():
            return "environment"
        case UsageError():
            return "recipe_error"
        case _:
            return "error"


def may_pass_here(raised: Raised) -> bool:
    """Return whether another attempt in the same process may succeed: not after an error of its GPU."""
    if isinstance(raised.own, DamagedError):
        return True
    return kind_of(raised) == "environment" and classify(raised.links)[0] != "gpu"


def is_torn(raised: Raised) -> bool:
    """Return whether a collective broke because its peer died, also where a recipe's code wrapped the exception."""
    if isinstance(raised.own, NonFiniteError) or classify(raised.links)[0] in {"card_bug", "hardware", "memory"}:
        return False
    # A path may name anything.
    return any(
        _COLLECTIVE & set(link.types) and _TORN.search(_PATH.sub("", f"{link.types[0]}: {link.message}"))
        for link in raised.links
    )
