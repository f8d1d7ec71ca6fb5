"""What becomes of a trial whose process is gone: it failed, or it is tried again.

Owns how Ray's errors are read (``death``); the decision (``fate``) takes what was read and counts, and knows no Ray.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ray import exceptions

from raymlops.errors import ProcessSpoiledError, TrialHungError, describe

MAX_LOSSES = 3
"""Nodes that one trial may lose: it may be what takes them down."""
_MEMORY = "running low on memory"
"""What Ray's memory monitor says of what it killed. Of any death Ray says that an OOM killer is a common cause."""
_ELSEWHERE = ("node has died", "node died", "node was terminated", "node is dead", "preempted")
_DETAIL = re.compile(r"Worker exit detail: (.*?\.)(?: |$)")
"""What Ray knows of a death; guesses follow."""
_LONG = 300


@dataclass(frozen=True)
class Death:
    """How a trial's process ended. ``spoiled`` is one that the trial before has left in no state to go on in."""

    kind: Literal["raised", "hung", "memory", "spoiled", "lost", "died"]
    reason: str


@dataclass(frozen=True)
class Fate:
    """Whether a trial is tried again from its checkpoint, and why."""

    again: bool
    reason: str


def death(error: BaseException | None) -> Death:
    """Read what Tune got from a trial's process in place of a result."""
    if error is None:
        return Death("died", "the trial's process died")
    cause = _cause(error)
    if isinstance(error, ProcessSpoiledError):
        return Death("spoiled", cause)
    if isinstance(error, TrialHungError):
        return Death("hung", cause)
    if isinstance(error, exceptions.RayError) and _MEMORY in str(error):
        (line, *_) = (line.strip() for line in str(error).splitlines() if _MEMORY in line)
        return Death("memory", f"the trial ran out of memory: {line[:_LONG]}")
    if isinstance(error, exceptions.NodeDiedError | exceptions.ActorUnavailableError):
        return Death("lost", f"the trial's node was lost: {cause}")
    if isinstance(error, exceptions.RayActorError) and not error.actor_init_failed:
        if any(word in str(error).lower() for word in _ELSEWHERE):
            return Death("lost", f"the trial's node was lost: {cause}")
        return Death("died", f"the trial's process died: {cause}")
    return Death("raised", cause)


def fate(of: Death, *, before: int, max_restarts: int) -> Fate:
    """Decide about a trial, of whose processes ``before`` have ended in the same way.

    One that hung or was killed for want of memory failed: it would do so again. A lost node is no fault of the trial,
    unless it happens again and again. Any other death may have been either, so it is tried ``max_restarts`` times.
    """
    allowed = {"lost": MAX_LOSSES, "died": max_restarts}.get(of.kind, 0)
    if of.kind == "spoiled" or before < allowed:
        return Fate(again=True, reason=of.reason)
    return Fate(again=False, reason=f"{of.reason} ({before + 1} times)" if before else of.reason)


def _cause(error: BaseException) -> str:
    """Return an error in one line. Ray's own begin with what they always say and end with the cause."""
    if isinstance(error, exceptions.RayTaskError):
        error = error.cause
    if not isinstance(error, exceptions.RayError):
        return describe(error)
    line = str(error).strip().splitlines()[-1].strip()
    if detail := _DETAIL.search(line):
        line = detail.group(1)
    return line if len(line) <= _LONG else f"{line[: _LONG - 3]}..."
