"""Diagnose why an attempt failed: what its ranks raised, what Ray Train raised, what Ray knows of processes and nodes.

Owns gathering the evidence; ``failure_policy`` decides which part of it is the cause.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raymlops.training.supervision.channel import log_tail
from raymlops.training.supervision.failure_policy import Failure, Raised, cause
from raymlops.training.supervision.worker_group import dead

if TYPE_CHECKING:
    from raymlops.training.supervision.messages import Inbox, Info

_DETAIL = "Worker exit detail: "
_CRASHED = "connection error code"
"""How Ray words the exit of a process without a message."""
_INTENDED = ("ray.kill", "owner has died", "ref_deleted", "all references")
"""How Ray words an intended exit."""


def diagnose(error: BaseException, *, inbox: Inbox, step: int) -> Failure:
    """Return the failure behind Ray Train's error."""
    raised, infos = dict(inbox.raised), inbox.infos
    lost: dict[int, str] = {}
    for rank, failure in getattr(error, "worker_failures", {}).items():
        if _is_loss(failure):
            text = str(getattr(failure, "health_check_failure", failure))
            if not (raised and _was_intended(text)):
                lost[rank] = text
        else:
            raised.setdefault(rank, Raised.by(failure))
    lost |= _ended_alone({rank: info for rank, info in infos.items() if rank not in raised})
    nodes = {rank: info.node_id for rank, info in infos.items()}
    gone = dead(set(nodes.values()))
    found = {rank: _lost(infos.get(rank), text) for rank, text in lost.items()}
    found |= {
        rank: Failure("node_died", "NodeDiedError", f"its node {node_id[:12]} ({infos[rank].host}) died")
        for rank, node_id in nodes.items()
        if node_id in gone
    }
    if raised or found:
        return cause(raised, found, nodes=nodes, step=step)
    return replace(_of_no_rank(error, step=step), own=Raised.by(error).own)


def never_started(error: BaseException | None) -> bool:
    """Return whether there was no room for the workers while Ray Train waited."""
    failure = getattr(error, "controller_failure", None)
    return type(failure).__name__ == "WorkerGroupStartupTimeoutError"


def _of_no_rank(error: BaseException, *, step: int) -> Failure:
    from ray.exceptions import RayActorError

    inner = getattr(error, "controller_failure", error)
    if type(inner).__name__ == "WorkerGroupStartupFailedError" or isinstance(inner, RayActorError):
        text = "a worker died while it started" if isinstance(inner, RayActorError) else str(inner)
        return Failure("worker_died", "WorkerDiedError", text, step=step)
    return Failure("error", type(inner).__name__, str(inner), step=step)


def _is_loss(failure: BaseException) -> bool:
    from ray.exceptions import RayActorError

    inner = getattr(failure, "health_check_failure", failure)
    return isinstance(inner, RayActorError)


def _ended_alone(infos: dict[int, Info]) -> dict[int, str]:
    """Return which of these ranks' processes exited unexpectedly, with the reason as far as Ray knows it."""
    import ray

    found: dict[int, str] = {}
    for rank, info in infos.items():
        with suppress(Exception):
            # No public table shows this without a dashboard.
            row: Any = ray._private.state.actors(info.handle._actor_id.hex())  # noqa: SLF001
            text = row["DeathCause"].actor_died_error_context.error_message
            if row["State"] == "DEAD" and text and not _was_intended(text):
                found[rank] = text
    return found


def _was_intended(text: str) -> bool:
    return any(word in text for word in _INTENDED)


def _lost(info: Info | None, text: str) -> Failure:
    who = "its process" if info is None else f"its process {info.pid} on {info.host}"
    log = "" if info is None else log_tail(info.log)
    return Failure("worker_died", "WorkerDiedError", f"{who} {_how(text)}", log=log)


def _how(text: str) -> str:
    """Return how a process ended, by Ray's sentence without its list of common causes."""
    if _CRASHED in text:
        return "was killed or crashed"
    lines = (text.partition(_DETAIL)[2] or text).strip().splitlines() or [""]
    return f"died: {lines[0].partition(' Some common causes')[0]}"
