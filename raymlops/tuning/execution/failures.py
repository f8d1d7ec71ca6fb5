"""The failure policy for trials: fail one, restart it from its checkpoint, or halt the sweep.

Owns how Ray's errors are classified (``death``); the decision (``decide_restart``) takes the class and counts. Failures
in a row for one reason are the environment's (``FailureStreak``).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from ray import exceptions

from raymlops.errors import PlacesLostError, ProcessSpoiledError, SweepError, TrialHungError, describe

MAX_LOSSES = 3
"""Nodes that one trial may lose: the trial may be what takes them down."""
_MEMORY = "running low on memory"
"""In the message of Ray's memory monitor. Ray names an OOM killer as a possible cause of any death."""
_ELSEWHERE = ("node has died", "node died", "node was terminated", "node is dead", "preempted")
_DETAIL = re.compile(r"Worker exit detail: (.*?\.)(?: |$)")
"""What Ray knows about a death; guesses follow."""
_LONG = 300


@dataclass(frozen=True)
class Death:
    """How a trial's process ended. ``spoiled``: the previous trial left it in an unusable state."""

    kind: Literal["raised", "hung", "memory", "spoiled", "lost", "died"]
    reason: str


@dataclass(frozen=True)
class RestartDecision:
    """Whether to restart a trial from its checkpoint, and why."""

    restart: bool
    reason: str


def death(error: BaseException | None) -> Death:
    """Classify the error that Tune got from a trial's process."""
    if error is None:
        return Death("died", "the trial's process died")
    cause = _cause(error)
    if isinstance(error, ProcessSpoiledError):
        return Death("spoiled", cause)
    if isinstance(error, PlacesLostError):
        return Death("lost", cause)
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


def decide_restart(of: Death, *, previous: int, max_restarts: int) -> RestartDecision:
    """Decide whether to restart a trial, ``previous`` of whose processes have ended in the same way.

    One that hung or ran out of memory failed: it would do so again. A lost node is not the trial's fault, unless it
    happens repeatedly. Any other death may have either cause, so the trial is restarted ``max_restarts`` times.
    """
    allowed = {"lost": MAX_LOSSES, "died": max_restarts}.get(of.kind, 0)
    if of.kind == "spoiled" or previous < allowed:
        return RestartDecision(restart=True, reason=of.reason)
    return RestartDecision(restart=False, reason=f"{of.reason} ({previous + 1} times)" if previous else of.reason)


class FailureStreak:
    """Trials that have failed in a row for one reason.

    They end only once another trial has another end, or none is left: a missing file, a full disk or a node without its
    driver fails every trial, and is no fault of their points. Reasons that differ in numbers alone are one reason.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = math.inf if limit is None else limit
        self._cause = ""
        self.trials: dict[int, str] = {}
        """The reasons by number."""

    def continues(self, reason: str) -> bool:
        """Return whether a failure for this reason continues it."""
        return not self.trials or cause(reason) == self._cause

    def add(self, number: int, reason: str) -> None:
        """Add a failed trial."""
        self.trials[number], self._cause = reason, cause(reason)

    @property
    def error(self) -> SweepError | None:
        """Return the error that halts the sweep; None while it is too short."""
        if len(self.trials) < self._limit:
            return None
        return SweepError(
            f"{len(self.trials)} trials in a row failed for one reason: {next(iter(self.trials.values()))}",
            hint="Remove the cause. These trials start again when the sweep is resumed; with a higher "
            "sweep.max_failures it would have continued.",
        )


def cause(reason: str) -> str:
    """Return a reason without its numbers."""
    return re.sub(r"\d[\d.e+-]*", "#", reason)


def _cause(error: BaseException) -> str:
    """Return an error in one line. Ray's errors begin with general advice and end with the cause."""
    if isinstance(error, exceptions.RayTaskError):
        error = error.cause
    if not isinstance(error, exceptions.RayError):
        return describe(error)
    line = str(error).strip().splitlines()[-1].strip()
    if detail := _DETAIL.search(line):
        line = detail.group(1)
    return line if len(line) <= _LONG else f"{line[: _LONG - 3]}..."
