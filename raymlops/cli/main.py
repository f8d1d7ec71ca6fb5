"""Entry point of the ``raymlops`` command: the signal handlers come first, then the verbs are imported.

Exit codes: 0 ok, 1 the run failed, 2 usage or configuration, 3 not found, 4 refused by a gate, a policy or a person,
5 cluster, tracking or storage unreachable, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import FrameType


def run() -> None:
    """Run the command line and exit with its code."""
    handles_sigint = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if handles_sigint:
        signal.signal(signal.SIGINT, _leave)
    from raymlops.cli.app import main as run_command

    if handles_sigint:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run_command(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    from raymlops.cli.app import main as run_command

    return run_command(arguments)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    # Nothing runs yet but imports, so there is nothing to clean up and no traceback worth showing.
    if "--json" in sys.argv:
        os.write(1, b'{"schema_version": 1, "error": {"type": "KeyboardInterrupt", "message": "interrupted"}}\n')
    os.write(2, b"interrupted\n")
    os._exit(130)
