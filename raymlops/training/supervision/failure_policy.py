"""The failure policy: retry, retry without a node, or stop; and which of several failures is the cause.

Pure: evidence of ranks and cluster in, a decision with its reason out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from raymlops.errors import NonFiniteError, RaymlopsError, StorageError, UsageError
from raymlops.training.supervision.transient import Link, chain_of, passing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.train import FailureRule

Kind = Literal["worker_died", "node_died", "controller_died", "hang", "recipe_error", "error", "storage", "environment"]

LATELY_S = 600.0
DELAYS_S = (0.0, 1.0, 5.0, 15.0, 60.0)
"""Backoff before a restart with 0, 1, 2, 3 and more restarts in the last ``LATELY_S``.

Regardless of progress in between: a node may fail shortly after each checkpoint, for days.
"""
_PAUSE = 2
"""A failure of the environment backs off as after this many restarts: it may take a while to pass."""
_STOP = {"recipe_error", "storage"}
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

    def __str__(self) -> str:
        where = "" if self.rank is None else f"rank {self.rank}: "
        lines = self.message.strip().splitlines() or [""]
        return {
            "worker_died": f"{where}{lines[0]}",
            "node_died": f"{where}{lines[0]}",
            "hang": lines[0],
            "controller_died": lines[0],
        }.get(self.kind, f"{where}{self.error_type}: {lines[0]}")


@dataclass(frozen=True)
class Decision:
    """What to do, why, and the backoff in seconds."""

    action: Literal["retry", "exclude_node", "stop"]
    reason: str
    delay_s: float = 0.0


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
        inner: BaseException | None = error
        while inner is not None and not isinstance(inner, RaymlopsError):
            inner = getattr(inner, "cause", None) or getattr(inner, "base_exc", None) or inner.__cause__
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
) -> Decision:
    """Decide by the first rule whose pattern is found in ``TYPE: MESSAGE`` or the log, else by the kind of failure.

    ``restarts_without_progress`` counts those since the newest checkpoint; it bounds rules that retry, too.
    ``restart_ages_s`` are the ages of the run's restarts; recent ones decide the backoff.
    """
    text = f"{failure.error_type}: {failure.message}\n{failure.log}"
    rule = next((rule for rule in rules if re.search(rule.match, text)), None)
    action: Literal["retry", "exclude_node", "stop"]
    if rule is not None:
        action, why = rule.action, f"train.on_failure {rule.match!r} says {rule.action}"
    elif failure.kind in _STOP:
        action, why = "stop", "the same would happen again"
    elif failure.kind == "environment":
        action, why = "retry", "the environment failed, not the recipe"
    else:
        action, why = "retry", "the next attempt may not meet it"
    if action == "stop":
        return Decision("stop", why)
    if restarts_without_progress >= max_restarts:
        times = "once" if restarts_without_progress == 1 else f"{restarts_without_progress} times"
        tried = f"restarted {times} without a new checkpoint in between" if restarts_without_progress else "no restart"
        return Decision("stop", f"{tried}; train.max_restarts allows {max_restarts}")
    if action == "exclude_node" and not failure.node_id:
        action, why = "retry", f"{why}, but the node is not known"
    lately = sum(age_s <= LATELY_S for age_s in restart_ages_s)
    pause = _PAUSE if failure.kind == "environment" else 0
    delay_s = DELAYS_S[min(lately + pause, len(DELAYS_S) - 1)]
    reason = f"{why}; restart {restarts_without_progress + 1} of {max_restarts} in a row"
    if pause and not lately:
        reason += f", in {delay_s:g} s, so that it may pass"
    if lately:
        before = "1 restart" if lately == 1 else f"{lately} restarts"
        reason += f", in {delay_s:g} s because of {before} in the last {LATELY_S / 60:g} minutes"
    return Decision(action, reason, delay_s)


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
    if is_torn(raised):
        return "error"
    if not isinstance(raised.own, NonFiniteError) and passing(raised.links):
        return "environment"
    match raised.own:
        case StorageError():
            return "storage"
        case UsageError() | NonFiniteError():
            return "recipe_error"
        case _:
            return "error"


def is_torn(raised: Raised) -> bool:
    """Return whether a collective broke because its peer died, also where a recipe's code wrapped the exception."""
    root = raised.links[0]
    if isinstance(raised.own, NonFiniteError) or not _COLLECTIVE & set(root.types):
        return False
    # A path may name anything.
    return bool(_TORN.search(_PATH.sub("", f"{root.types[0]}: {root.message}")))
