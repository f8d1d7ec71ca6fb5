"""The verbs in one place; errors become exit codes.

Inside a Ray job the last line of stdout is ``RAYMLOPS_RESULT {json}``, whatever the outcome.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from raymlops.cli import clusters, keys, live, models, operations, output, predict, predictions, projects, runs, traffic
from raymlops.cli.output import report_error
from raymlops.cluster.driver_node import reporting_by
from raymlops.errors import ClusterError, UsageError
from raymlops.version import __version__

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray sets for the entry point of a submitted job."""

app = typer.Typer(
    name="raymlops",
    help="From a PyTorch model to a live endpoint on one Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (projects, runs, operations, models, keys, live, traffic, predict, predictions, clusters):
    module.add_to(app)


class _InterruptedError(BaseException):
    """Carries an interrupt and its notes past typer, which turns a KeyboardInterrupt into a bare exit code."""

    def __init__(self, by: KeyboardInterrupt) -> None:
        super().__init__()
        self.by = by


def _carry_interrupts(group: typer.Typer) -> None:
    """Let interrupts in every command of a group, and of its subgroups, pass through typer."""
    for command in group.registered_commands:
        assert command.callback is not None
        command.callback = _carrying(command.callback)
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _carry_interrupts(inner.typer_instance)


def _carrying(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def run_command(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt as error:
            raise _InterruptedError(error) from error

    return run_command


_carry_interrupts(app)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """From a PyTorch model to a live endpoint on one Ray cluster."""


def main(arguments: list[str], *, result: bool = False) -> int:
    """Run one command and return its exit code; with ``result``, and inside a Ray job, end with a result line."""
    if arguments == ["--version"]:
        sys.stdout.write(f"raymlops {__version__}\n")
        return 0
    # The console script puts its own folder first; recipes are imported from the working directory.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - sys.path holds strings
    signal.signal(signal.SIGTERM, _interrupt)
    as_json = "--json" in arguments
    result = result or (JOB in os.environ and not as_json)
    verb = arguments[0] if arguments else ""
    output.last.clear()

    def report_lost(error: ClusterError) -> None:
        code = report_error(error, as_json=as_json)
        if result:
            output.print_result(verb, code)

    with reporting_by(report_lost):
        code = _run(arguments, as_json=as_json)
    if result:
        output.print_result(verb, code)
    return code


def _run(arguments: list[str], *, as_json: bool) -> int:
    try:
        # With standalone_mode=False typer returns the code of typer.Exit and raises everything else.
        code = app(arguments, standalone_mode=False)
    except typer.Abort:
        return report_error(KeyboardInterrupt(), as_json=as_json)
    except _InterruptedError as interrupted:
        return report_error(interrupted.by, as_json=as_json)
    except TyperException as error:
        if not arguments or type(error).__name__ == "NoArgsIsHelpError":
            output.note(error.format_message())
            return UsageError.exit_code
        usage = UsageError(error.format_message(), hint="Commands: raymlops --help. Options: raymlops COMMAND --help.")
        return report_error(usage, as_json=as_json)
    except BrokenPipeError:
        output.discard_stdout()
        return 0
    # A recipe may call sys.exit, and Ray does when it is told to stop while it starts.
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return report_error(error, as_json=as_json)
    return code if isinstance(code, int) else 0


def _interrupt(_number: int, _frame: FrameType | None) -> Any:
    # SIGTERM (a job is stopped, a container ends) is handled like Ctrl-C: everything is cleaned up.
    raise KeyboardInterrupt
