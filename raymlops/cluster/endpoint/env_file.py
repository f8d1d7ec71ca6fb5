"""A file of environment variables, one NAME=VALUE a line, as ``docker run --env-file`` reads it.

Values are literal: nothing is expanded, unquoted or run. Knows no variable by name.
"""

from __future__ import annotations

import re
from pathlib import Path

from raymlops.cluster.endpoint.haproxy_wrapper import open_to_others
from raymlops.errors import UsageError

_LINE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_QUOTED = re.compile(r"(['\"]).*\1", re.DOTALL)


def read_env_file(file: str | Path) -> dict[str, str]:
    """Return the variables of a file; empty lines and those that begin with ``#`` are none.

    Raises:
        UsageError: it cannot be read, others than its owner may read it (one of root may be readable by its group), or
            a line is malformed. No line is shown, since it may hold a password.
    """
    path = Path(file).expanduser()
    try:
        mode = open_to_others(str(path))
        text = path.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no UTF-8 text") from None
    if mode is not None:
        raise UsageError(f"others can read or change {path}, mode {mode:04o}", hint=f"chmod 600 {path}")
    lines = enumerate((line.removesuffix("\r") for line in text.split("\n")), start=1)
    return dict(_variable(line, f"{path}, line {n}") for n, line in lines if line.strip() and line.lstrip()[0] != "#")


def _variable(line: str, place: str) -> tuple[str, str]:
    found = _LINE.fullmatch(line)
    if found is None:
        raise UsageError(f"{place}: expected NAME=VALUE, without `export` and without spaces around the name")
    name, value = found.groups()
    if _QUOTED.fullmatch(value):
        raise UsageError(f"{place}: the value of {name} is in quotes", hint="Values are literal: leave the quotes out.")
    if "\0" in value:
        raise UsageError(f"{place}: the value of {name} has a NUL byte")
    return name, value
