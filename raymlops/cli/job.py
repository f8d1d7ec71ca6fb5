"""What the scripts in ``jobs/`` share: arguments, progress as log lines, one result line, the exit code.

The last line of a job's log is ``RAYMLOPS_RESULT {json}``, also when it failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from raymlops.cli.output import describe, report_error

Work = Callable[[argparse.Namespace], Any]


def run_job(verb: str, work: Work) -> None:
    """Parse ``--config FILE [--env NAME] [key.path=value ...]``, run ``work``, print its result and exit."""
    from raymlops.cluster.jobs import print_result

    parser = argparse.ArgumentParser(prog=f"jobs/{verb}.py", description=f"raymlops {verb}, as a Ray job.")
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--env", metavar="NAME")
    if verb == "deploy":
        parser.add_argument("--version", default="@challenger", metavar="VERSION", help="a number or @alias")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    arguments = parser.parse_args()
    # A job's files are unpacked into its working directory, recipes among them; python puts the script's folder first.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - sys.path holds strings
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        record = work(arguments)
    except (Exception, KeyboardInterrupt) as error:
        code = report_error(error, as_json=False)
        print_result({"verb": verb, "error": describe(error), "exit_code": code})
        sys.exit(code)
    print_result({"verb": verb, **record.to_dict()})
