"""What becomes of a trial whose process is gone: it failed, or it is tried again.

Owns how Ray's errors are read. The decision is pure: an error and a count in, a decision with its reason out.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray import exceptions

from raymlops.tuning.reasons import describe
from raymlops.tuning.watchdog import TrialHungError

_MEMORY = "running low on memory"
"""What Ray's memory monitor says of what it killed. Of any death Ray says that an OOM killer is a common cause."""
_LONG = 300
_ELSEWHERE = ("node has died", "node died", "node was terminated", "node is dead", "preempted")


@dataclass(frozen=True)
class Fate:
    """Whether a trial is tried again from its checkpoint, whether that counts as a restart, and why."""

    again: bool
    counts: bool
    reason: str


def fate(error: BaseException | None, *, restarts: int, max_restarts: int) -> Fate:
    """Decide about a trial whose process ended with ``error``, after ``restarts`` that counted.

    One that hung or was killed for want of memory failed: it would do so again. A node that was lost is no fault of
    the trial. Any other death may have been either, so it is tried ``max_restarts`` times.
    """
    if error is None:
        return _counted("the trial's process died", restarts=restarts, max_restarts=max_restarts)
    if isinstance(error, TrialHungError):
        return Fate(again=False, counts=False, reason=describe(error))
    text = str(error)
    if isinstance(error, exceptions.OutOfMemoryError) or _MEMORY in text:
        return Fate(again=False, counts=False, reason=f"the trial ran out of memory: {_cause(error)}")
    if isinstance(error, exceptions.NodeDiedError | exceptions.ActorUnavailableError) or any(
        word in text.lower() for word in _ELSEWHERE
    ):
        return Fate(again=True, counts=False, reason=f"the trial's node was lost: {_cause(error)}")
    if isinstance(error, exceptions.RayActorError) and not error.actor_init_failed:
        return _counted(f"the trial's process died: {_cause(error)}", restarts=restarts, max_restarts=max_restarts)
    return Fate(again=False, counts=False, reason=_cause(error))


def _cause(error: BaseException) -> str:
    """Return an error in one line. Ray's own begin with what they always say and end with the cause."""
    if not isinstance(error, exceptions.RayError):
        return describe(error)
    line = str(error).strip().splitlines()[-1].strip()
    return line if len(line) <= _LONG else f"{line[: _LONG - 3]}..."


def _counted(reason: str, *, restarts: int, max_restarts: int) -> Fate:
    again = restarts < max_restarts
    more = "" if again or not max_restarts else f" ({restarts + 1} times)"
    return Fate(again=again, counts=True, reason=f"{reason}{more}")
