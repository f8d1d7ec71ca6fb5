"""Keeps Ray Tune to itself while it runs: its own prints, result files, signal handling and change of directory.

Owns process-wide settings for the time of one sweep, and puts each back. Knows nothing of trials.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.tuning.conductor import Conductor

# Read by Ray 2.60 from the environment and nowhere else.
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard file a trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # its handler is never taken off again after a sweep that was not interrupted
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the reason is in the trial's record
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints tables even at verbosity 0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a recipe's relative paths mean the same in a trial as in a run
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
    """Let the first Ctrl-C halt the sweep in order; a second one raises where it strikes.

    In a thread other than the main one there are no signals to handle.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}

    def halt(number: int, frame: Any) -> None:  # noqa: ARG001 - the signature of a handler
        conductor.halt = "interrupted"
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, halt)
    signal.signal(signal.SIGTERM, halt)
    try:
        yield
    finally:
        # SIGUSR1 too: Tune takes it and keeps it.
        for number, handler in before.items():
            signal.signal(number, handler)
