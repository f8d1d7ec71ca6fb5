"""Train a run in this process, from its newest checkpoint, and again where the environment failed.

Owns the attempts of a run without workers. What may pass is decided by the failure policy, as for workers; a process
that a GPU error, a signal or a bug ended is resumed by the run's id.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from raymlops.config.changes import identity
from raymlops.errors import RaymlopsError
from raymlops.training.checkpoints.latest import recall
from raymlops.training.checkpoints.saver import FolderSaver
from raymlops.training.events import Event, words
from raymlops.training.inprocess import run_in_process
from raymlops.training.loop.outcome import Hooks
from raymlops.training.runs.writer import CHECKPOINT_FAILURES
from raymlops.training.supervision.failure_policy import Raised, cause, decide, may_pass_here

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.training.checkpoints.latest import Recalled
    from raymlops.training.loop.outcome import Outcome
    from raymlops.training.supervision.request import RunRequest

_LOOK_S = 0.25


def run_here(request: RunRequest, *, sleep: Callable[[float], None] = time.sleep) -> tuple[Outcome, str]:
    """Train to the end and return the outcome and the URI of the best checkpoint.

    Raises:
        KeyboardInterrupt: ``request.stop`` had a reason.
        Exception: what the training raised, where another attempt would not help or there were enough of them.
    """
    section, reason, newest_step = request.section, "", -1
    restarts = 0
    restarted_s: list[float] = []
    while True:
        found = _newest_checkpoint(request, reason=reason)
        step = 0 if found.state is None else found.state.step
        if step > newest_step:
            restarts, newest_step = 0, step
        saver = _saver(request, found)
        try:
            outcome = run_in_process(
                request.project,
                request.prepared,
                saver=saver,
                hooks=Hooks(emit=request.writer, orders=request.stop),
                resume=found.uri,
                identity=identity(request.project.spec),
            )
        except Exception as error:
            raised = Raised.by(error)
            if not may_pass_here(raised):
                raise
            failure = replace(cause({0: raised}, {}, nodes={}, step=step), rank=None)
            decision = decide(
                failure,
                rules=section.on_failure,
                max_restarts=section.max_restarts,
                restarts_without_progress=restarts,
                restart_ages_s=[time.monotonic() - at_s for at_s in restarted_s],
            )
            if decision.action == "stop":
                error.add_note(decision.reason)
                raise
        else:
            if outcome.stopped:
                raise KeyboardInterrupt
            return outcome, saver.best_uri
        # By now the exception is gone, and the model with it that its frames held.
        with suppress(RaymlopsError):
            saver.wait()
        restarts += 1
        restarted_s.append(time.monotonic())
        reason = str(failure)
        request.writer(words(f"{failure}; {decision.reason}"))
        _wait(decision.delay_s, request.stop, sleep=sleep)


def _newest_checkpoint(request: RunRequest, *, reason: str) -> Recalled:
    """Find the checkpoint to start from, and record the restart, if it is one: ``reason`` is why."""
    section = request.section
    found = recall(request.checkpoints_uri, metric=section.metric, mode=section.mode, digests=False)
    for text in found.warnings():
        request.writer(words(text))
    why = f": {reason}" if reason else ""
    if found.state is not None:
        request.catch_up(found.state.points)
        step = found.state.step
        request.writer(Event("restart", step=step, message=f"resumed after step {step}{why}"))
    elif reason:
        request.writer(Event("restart", message=f"restarted from scratch{why}"))
    return found


def _saver(request: RunRequest, found: Recalled) -> FolderSaver:
    saver = FolderSaver(
        request.section,
        request.checkpoints_uri,
        token=secrets.token_hex(3),
        identity=identity(request.project.spec),
        kept=found.kept,
        on_event=lambda text: request.writer(words(text, tags={CHECKPOINT_FAILURES: str(saver.failures)})),
    )
    return saver


def _wait(delay_s: float, stop: Callable[[], str], *, sleep: Callable[[float], None]) -> None:
    """Wait for the backoff.

    Raises:
        KeyboardInterrupt: there is a reason to stop.
    """
    for _ in range(round(delay_s / _LOOK_S)):
        if stop():
            raise KeyboardInterrupt
        sleep(_LOOK_S)
