"""Diagnose why an attempt failed: what its ranks raised, what Ray Train raised, what Ray knows of processes and nodes.

Owns gathering the evidence; ``failure_policy`` decides which part of it is the cause.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from raymlops.training.supervision.channel import log_tail
from raymlops.training.supervision.failure_policy import Failure, Lost, Raised, cause
from raymlops.training.supervision.worker_group import dead

if TYPE_CHECKING:
    from raymlops.errors import RaymlopsError
    from raymlops.training.supervision.messages import Inbox, Info

_DETAIL = "Worker exit detail: "
_UNSEEN = "connection error code"
"""How Ray words the exit of a process without a message."""
_ASKED = ("ray.kill", "owner has died", "ref_deleted", "all references")
"""How Ray words an intended exit."""


def diagnose(error: BaseException, *, inbox: Inbox, step: int) -> tuple[Failure, RaymlopsError | None]:
    """Return the failure behind Ray Train's error, and the raymlops exception where it was one."""
    raised, infos = dict(inbox.raised), inbox.infos
    lost: dict[int, str] = {}
    for rank, failure in getattr(error, "worker_failures", {}).items():
        if _is_loss(failure):
            text = str(getattr(failure, "health_check_failure", failure))
            if not (raised and _was_asked(text)):
                lost[rank] = text
        else:
            raised.setdefault(rank, Raised.by(failure))
    lost |= _ended_alone({rank: info for rank, info in infos.items() if rank not in raised})
    nodes = {rank: info.node_id for rank, info in infos.items()}
    gone = dead(set(nodes.values()))
    found = {rank: _lost(infos.get(rank), text) for rank, text in lost.items()}
    found |= {
        rank: Lost(f"its node {_where(infos[rank])} died", node_died=True)
        for rank, node_id in nodes.items()
        if node_id in gone
    }
    if raised or found:
        failure = cause(raised, found, nodes=nodes, step=step)
        own = raised[failure.rank].own if failure.rank in raised and failure.rank is not None else None
        return failure, own if failure.error_type == type(own).__name__ else None
    return _of_controller(error, step=step), Raised.by(error).own


def never_started(error: BaseException | None) -> bool:
    """Return whether there was no room for the workers while Ray Train waited."""
    failure = getattr(error, "controller_failure", None)
    return type(failure).__name__ == "WorkerGroupStartupTimeoutError"


def _of_controller(error: BaseException, *, step: int) -> Failure:
    from ray.exceptions import RayActorError

    inner = getattr(error, "controller_failure", error)
    if type(inner).__name__ == "WorkerGroupStartupFailedError":
        return Failure("worker_died", "WorkerDiedError", "a worker died while it started", step=step)
    if isinstance(inner, RayActorError):
        text = str(inner)
        what = "was killed or crashed" if _UNSEEN in text else f"died: {_detail(text)}"
        return Failure("controller_died", "ControllerDiedError", f"Ray Train's controller {what}", step=step)
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
            if row["State"] == "DEAD" and text and not _was_asked(text):
                found[rank] = text
    return found


def _was_asked(text: str) -> bool:
    return any(word in text for word in _ASKED)


def _lost(info: Info | None, text: str) -> Lost:
    who = "its process" if info is None else f"its process {info.pid} on {info.host}"
    what = "was killed or crashed" if _UNSEEN in text else f"died: {_detail(text)}"
    return Lost(f"{who} {what}", log="" if info is None else log_tail(info.log))


def _where(info: Info) -> str:
    return f"{info.node_id[:12]} ({info.host})"


def _detail(text: str) -> str:
    """Return Ray's sentence of what happened, without its list of common causes."""
    lines = (text.partition(_DETAIL)[2] or text).strip().splitlines() or [""]
    return lines[0].partition(" Some common causes")[0]
