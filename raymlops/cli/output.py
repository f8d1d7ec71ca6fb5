"""What a command prints, and its exit code.

stdout holds the answer alone, everything else goes to stderr. With ``--json`` the answer, or the error, is one object
with ``schema_version``.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TextIO

import typer

from raymlops.config.paths import CONFIG_DIGEST
from raymlops.errors import ConfigError, InvalidRowsError, RaymlopsError, RefusedError, StorageError, UsageError
from raymlops.records import to_json


def _applied(config: str | None) -> str | None:
    """Return the file of ``--config``, once it is that of the job on Kubernetes that this process is."""
    if config is not None and CONFIG_DIGEST in os.environ:
        from raymlops.cluster.kubernetes.applied import check_applied

        check_applied(config, write=note)
    return config


_CONFIG = typer.Option(
    "--config", "-c", metavar="FILE", help="Configuration file.", show_default=False, callback=_applied
)
ConfigOption = Annotated[str, _CONFIG]
OptionalConfig = Annotated[str | None, _CONFIG]
EnvOption = Annotated[str | None, typer.Option("--env", metavar="NAME", help="Overlay: env/NAME.yaml beside the file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Values that replace the file's.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]

RESULT = "RAYMLOPS_RESULT"


@dataclass(frozen=True)
class Answer:
    """What a command prints on stdout: ``data`` with ``--json``, otherwise ``text``."""

    data: Mapping[str, Any]
    text: str
    exit_code: int = 0


def answer(found: Answer, *, as_json: bool) -> None:
    """Print an answer.

    Raises:
        StorageError: as ``printing``.
    """
    write(f"{to_json(found.data) if as_json else found.text}\n")


def write(text: str) -> None:
    """Write to stdout.

    Raises:
        StorageError: as ``printing``.
    """
    with printing() as stdout:
        stdout.write(text)


@contextmanager
def printing() -> Iterator[TextIO]:
    """Yield stdout, flushed afterwards.

    Raises:
        StorageError: it is closed, or the disk that it is redirected to is full.
    """
    if sys.stdout is None:
        raise StorageError("stdout is closed, so the answer cannot be printed")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise StorageError(f"the answer cannot be written to stdout: {error.strerror}") from error


def note(text: str) -> None:
    """Print a remark on stderr."""
    if sys.stderr is not None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def confirm(question: str, *, yes: bool) -> None:
    """Ask for confirmation of a change that cannot simply be repeated or undone.

    Raises:
        UsageError: there is no terminal to ask on, and no ``--yes``.
        RefusedError: the answer was no.
    """
    if yes:
        return
    if not has_terminal():
        raise UsageError(f"there is no terminal to ask on: {question}", hint="Add --yes.")
    if not typer.confirm(question, err=True):
        raise RefusedError("the answer was no; nothing was changed")


def has_terminal() -> bool:
    """Return whether there is a terminal to ask a question on."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def report_error(error: BaseException, *, as_json: bool) -> int:
    """Print an error, as JSON on stdout or as text on stderr, and return the exit code."""
    if as_json:
        with suppress(RaymlopsError, BrokenPipeError):  # stdout may be what failed
            write(f"{to_json({'error': error_data(error)})}\n")
    if isinstance(error, KeyboardInterrupt):
        for line in ("interrupted", *_notes(error)):
            note(line)
        return 130
    if not as_json:
        if isinstance(error, RaymlopsError):
            note(f"error: {error}")
        else:
            note(f"error: unexpected {type(error).__name__}: {error}")
            if not os.environ.get("RAYMLOPS_DEBUG"):
                note("  This is a defect of raymlops or of a recipe. RAYMLOPS_DEBUG=1 shows where it was raised.")
        for line in _notes(error):
            note(f"  {line}")
    if os.environ.get("RAYMLOPS_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    return error.exit_code if isinstance(error, RaymlopsError) else 1


def error_data(error: BaseException) -> dict[str, Any]:
    """Return an error as plain data."""
    data: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, KeyboardInterrupt):
        data["message"] = "interrupted"
    if isinstance(error, RaymlopsError):
        data |= {"message": error.message, "hint": error.hint}
    if isinstance(error, ConfigError | InvalidRowsError):
        data["problems"] = [asdict(problem) for problem in error.problems]
    if notes := _notes(error):
        data["notes"] = notes
    return data


def print_result(verb: str, data: Mapping[str, Any], code: int) -> None:
    """Print the last line of a job's log: the answer or the error, with the exit code where it is not 0.

    Ray's own command ends with 1 whatever the exit code of a job is.
    """
    data = {"error": data["error"]} if "error" in data else data
    data = {**data, "exit_code": code} if code else data
    # Ray merges stdout and stderr of a job in the order of arrival.
    sys.stderr.flush()
    with suppress(RaymlopsError, BrokenPipeError):
        write(f"{RESULT} {to_json({'verb': verb, **data})}\n")


def discard_stdout() -> None:
    """Redirect stdout to nowhere, so that the interpreter's last flush does not fail again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def given(options: Mapping[str, Any]) -> list[str]:
    """Return the names of the options that the command line sets."""
    return [name for name, value in options.items() if not (value is None or value is False or value == [])]


def number(value: float | None) -> str:
    """Return a value with five digits, ``-`` for None."""
    return "-" if value is None else f"{value:.5g}"


def _notes(error: BaseException) -> list[str]:
    """Return the notes added to an error, such as how to resume the run that it stopped.

    A second Ctrl-C, while the first one cleans up, has those of the first.
    """
    notes = [str(line) for line in getattr(error, "__notes__", [])]
    if not notes and isinstance(error, KeyboardInterrupt) and isinstance(error.__context__, KeyboardInterrupt):
        return _notes(error.__context__)
    return notes
