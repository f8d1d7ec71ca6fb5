"""What the scripts in ``jobs/`` share: arguments, progress as log lines, one result line, the exit code.

The last line of a job's log is ``RAYMLOPS_RESULT {json}``, also when it failed or was called wrongly.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from raymlops.cli.output import describe, report_error
from raymlops.errors import UsageError
from raymlops.records import to_json

RESULT = "RAYMLOPS_RESULT"

_VERSIONS = {"deploy": "@challenger", "predict": "@champion"}
"""Verbs that take a version, and which one they take by default."""

Work = Callable[[argparse.Namespace], Any]


def run_job(verb: str, work: Work) -> None:
    """Parse ``--config FILE [--env NAME] [key.path=value ...]``, run ``work``, print its result.

    A training and a sweep take ``--resume ID`` too, with or without a file; a prediction ``--batch IN --out OUT``.
    SIGTERM, which ends a job, is taken for Ctrl-C: work that has something to save asks for both itself
    (``signals.stop_asked``).

    Raises:
        SystemExit: with the exit code of the error, once its result line is printed.
    """
    # A job's files are unpacked into its working directory, recipes among them; python puts the script's folder first.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - sys.path holds strings
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        arguments = _parse(verb)
    except UsageError as error:
        _fail(verb, error)
    try:
        result = work(arguments).to_dict()
    # A recipe may call sys.exit, and Ray does when it is told to stop while it starts.
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        _fail(verb, error)
    _print_result({"verb": verb, **result})


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=self.format_usage().strip())


def _parse(verb: str) -> argparse.Namespace:
    parser = _Parser(prog=f"jobs/{verb}.py", description=f"raymlops {verb}, as a Ray job.")
    go_on = {"train": ("resume",), "sweep": ("resume", "fork")}.get(verb, ())
    parser.add_argument("--config", required=not go_on, metavar="FILE")
    parser.add_argument("--env", metavar="NAME")
    if go_on:
        parser.add_argument("--resume", metavar="ID", help=f"a {verb} of before, which goes on")
    if verb == "sweep":
        parser.add_argument("--extend", action="append", default=[], metavar="KEY=+N", help="of the one that goes on")
        parser.add_argument("--fork", metavar="ID", help="a sweep of before, whose trials a new one knows")
    if verb == "predict":
        parser.add_argument("--batch", required=True, metavar="IN", help="a Parquet file, folder or URI")
        parser.add_argument("--out", required=True, metavar="OUT", help="a folder or URI that is not there yet")
    if verb in _VERSIONS:
        parser.add_argument("--version", default=_VERSIONS[verb], metavar="VERSION", help="a number or @alias")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    arguments = parser.parse_args()
    ways = ("config", *go_on)
    if go_on and all(getattr(arguments, name) is None for name in ways):
        parser.error(f"one of the following arguments is required: {', '.join(f'--{name}' for name in ways)}")
    return arguments


def _fail(verb: str, error: BaseException) -> NoReturn:
    code = report_error(error, as_json=False)
    _print_result({"verb": verb, "error": describe(error), "exit_code": code})
    sys.exit(code)


def _print_result(data: Mapping[str, Any]) -> None:
    # Ray puts stdout and stderr of a job into one log in the order in which they arrive.
    sys.stderr.flush()
    sys.stdout.write(f"{RESULT} {to_json(data)}\n")
    sys.stdout.flush()
