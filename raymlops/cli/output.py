"""What a command prints and the code it exits with.

stdout is the answer alone, everything else goes to stderr. With ``--json`` the answer, or the error, is
one object with ``schema_version``.
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from raymlops.errors import ConfigError, InvalidRowsError, RaymlopsError, UsageError
from raymlops.records import to_json

ConfigOption = Annotated[
    str, typer.Option("--config", "-c", metavar="FILE", help="Configuration file.", show_default=False)
]
OptionalConfig = Annotated[
    str | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration file.", show_default=False)
]
EnvOption = Annotated[str | None, typer.Option("--env", metavar="NAME", help="Overlay: env/NAME.yaml beside the file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Values that replace the file's.")
]
VersionOption = Annotated[str, typer.Option("--version", metavar="VERSION", help="A number or @alias.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def answer(data: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Print the answer of a command on stdout: ``data`` as JSON, or ``text``."""
    sys.stdout.write(f"{to_json(data)}\n" if as_json else f"{text}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a remark on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def confirm(question: str, *, yes: bool) -> None:
    """Ask before a change that cannot simply be made again.

    Raises:
        UsageError: there is no terminal to ask on, and no ``--yes``.
        typer.Abort: the answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"there is no terminal to ask on: {question}", hint="Add --yes.")
    typer.confirm(question, abort=True, err=True)


def report_error(error: BaseException, *, as_json: bool) -> int:
    """Print an error where the caller looks for it and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        for line in ("interrupted", *_notes(error)):
            note(line)
        return 130
    code = error.exit_code if isinstance(error, RaymlopsError) else 1
    if as_json:
        sys.stdout.write(f"{to_json({'error': describe(error)})}\n")
    elif isinstance(error, RaymlopsError):
        note(f"error: {error}")
    else:
        note(f"error: unexpected {type(error).__name__}: {error}")
        if not os.environ.get("RAYMLOPS_DEBUG"):
            note("  This is a defect of raymlops or of a recipe. RAYMLOPS_DEBUG=1 shows where it was raised.")
    if not as_json:
        for line in _notes(error):
            note(f"  {line}")
    if os.environ.get("RAYMLOPS_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    return code


def describe(error: BaseException) -> dict[str, Any]:
    """Return an error as plain data."""
    data: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, RaymlopsError):
        data |= {"message": error.message, "hint": error.hint}
    if isinstance(error, ConfigError | InvalidRowsError):
        data["problems"] = [asdict(problem) for problem in error.problems]
    if notes := _notes(error):
        data["notes"] = notes
    return data


def command_of(verb: str, *words: object, config: str, overrides: Sequence[str] | None = None, env: str | None) -> str:
    """Return the command for a shell that asks for ``verb`` about the same project as this one did."""
    overlay = () if env is None else ("--env", env)
    return f"raymlops {verb} {shlex.join(['--config', config, *map(str, words), *(overrides or ()), *overlay])}"


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Any], str] | None]) -> str:
    """Return rows as an aligned text table; ``columns`` maps a key to its formatter, None for ``str``."""
    cells = [list(columns)] + [[(form or str)(row.get(key, "")) for key, form in columns.items()] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _notes(error: BaseException) -> list[str]:
    """Return what was added to an error on its way, such as how a run that it stopped goes on."""
    return [str(line) for line in getattr(error, "__notes__", [])]
