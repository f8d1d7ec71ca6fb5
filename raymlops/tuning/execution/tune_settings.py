"""Keeps Ray Tune to itself while it runs: its own prints, result files, signal handling and change of directory.

Owns process-wide settings for the time of one sweep, and puts each back. Knows nothing of trials.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raymlops.signals import heeded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.tuning.execution.controller import Conductor

GRACE_S = 15.0
"""Longer than Tune needs to end trials that do not answer."""

# Read by Ray 2.60 from the environment and nowhere else.
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard file a trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # its handler is never taken off again after a sweep that was not interrupted
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the reason is in the trial's record
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints tables even at verbosity 0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a recipe's relative paths mean the same in a trial as in a run
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # a snapshot of all trials each ten seconds, for a restore that we never make
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",  # left alone, Tune starts processes one by one; the conductor limits them
}


@contextmanager
def quiet_tune() -> Iterator[None]:
    """Apply the settings, and show of Tune's log what is critical only."""
    before = {name: os.environ.get(name) for name in SETTINGS}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(SETTINGS)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def stop_on_signal(conductor: Conductor) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM halt the sweep in order; one that comes ``GRACE_S`` later raises where it strikes."""
    first_s: float | None = None

    def halt(number: int, frame: Any) -> None:  # noqa: ARG001 - the signature of a handler
        nonlocal first_s
        conductor.halt = conductor.halt or "interrupted"
        if first_s is not None and time.monotonic() - first_s > GRACE_S:
            raise KeyboardInterrupt
        first_s = first_s or time.monotonic()

    with _handling(halt):
        yield


@contextmanager
def _handling(handler: Any) -> Iterator[None]:
    """Handle SIGINT and SIGTERM for a while. Outside the main thread there are no signals to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # SIGUSR1 too: Tune (2.60) takes it and keeps it.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    for number in heeded():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
