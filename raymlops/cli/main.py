"""The ``raymlops`` command: the verbs in one place, errors turned into exit codes.

0 ok, 1 the run failed, 2 usage or configuration, 3 not found, 4 refused by a gate or policy,
5 cluster or tracking unreachable, 130 interrupted.
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

from raymlops.cli import clusters, keys, live, models, operations, predict, predictions, projects, runs
from raymlops.cli.output import report_error
from raymlops.errors import UsageError
from raymlops.version import __version__

app = typer.Typer(
    name="raymlops",
    help="From a PyTorch model to a live endpoint on one Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (projects, runs, operations, models, keys, live, predict, predictions, clusters):
    module.add_to(app)


class _InterruptedError(BaseException):
    """Carries an interrupt, with what was noted on it, past typer, which makes a bare exit code of one."""

    def __init__(self, by: KeyboardInterrupt) -> None:
        super().__init__()
        self.by = by


def _carry_interrupts(group: typer.Typer) -> None:
    """Let every command of a group, and of those in it, raise an interrupt in a way that typer lets through."""
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


def run() -> None:
    """Run the command line and exit with its code."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    if arguments == ["--version"]:
        sys.stdout.write(f"raymlops {__version__}\n")
        return 0
    # The console script puts its own folder first; recipes are looked for where the user stands.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - sys.path holds strings
    signal.signal(signal.SIGTERM, _interrupt)
    as_json = "--json" in arguments
    try:
        # Outside of its standalone mode typer returns the code of typer.Exit, and raises everything else.
        code = app(arguments, standalone_mode=False)
    except typer.Abort:
        return report_error(KeyboardInterrupt(), as_json=as_json)
    except _InterruptedError as interrupted:
        return report_error(interrupted.by, as_json=as_json)
    except TyperException as error:
        usage = UsageError(error.format_message(), hint="Commands: raymlops --help. Options: raymlops COMMAND --help.")
        return report_error(usage, as_json=as_json)
    except BrokenPipeError:
        return _pipe_closed()
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error, as_json=as_json)
    return code if isinstance(code, int) else 0


def _interrupt(_number: int, _frame: FrameType | None) -> Any:
    # SIGTERM (a job stopped, a container ended) takes the same way out as Ctrl-C: nothing is left behind.
    raise KeyboardInterrupt


def _pipe_closed() -> int:
    # The reader went away (``| head``): point stdout nowhere, so that the interpreter's last flush is quiet.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
