"""Building blocks of every configuration section: strict models, names, URIs, secret references, resume rules.

Owns the rules for all fields of these kinds. Knows no section.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from raymlops.config.credentials import ADVICE, holds_credential
from raymlops.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable


class Spec(BaseModel):
    """Base of every section: strict types, unknown keys rejected, immutable, finite numbers only."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # pydantic's own text would repeat a credential
    )


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9_]|-(?!-)){0,62}", value) or value.endswith("-"):
        msg = (
            f"got {value!r}; a name is 1 to 63 of a-z, 0-9, _ and single -, starting with a letter or digit: "
            "it becomes a URL, an MLflow model and a Serve application"
        )
        raise ValueError(msg)
    return value


Name = Annotated[str, AfterValidator(_name)]


@dataclass(frozen=True)
class Resume:
    """Whether a field, or a section with all its fields, may have another value when a run or a sweep is resumed.

    Every field says it in its annotation, or its section does: ``lr: Fixed[float] = Field(...)``.
    """

    run: bool = False
    sweep: bool = False
    run_effect: str = ""
    """What a change does to a run's numbers from here on; empty where that is nothing."""
    sweep_effect: str = ""
    extendable: bool = False
    """Whether ``--extend`` raises it."""


T = TypeVar("T")
R = TypeVar("R", str, tuple[str, ...])
Fixed = Annotated[T, Resume()]
"""Decides the result, or where it is found."""
Free = Annotated[T, Resume(run=True, sweep=True)]
FreeInRun = Annotated[T, Resume(run=True)]
"""Not in a sweep, whose trials are compared: all are as long, search the same space and leave out the same batches."""
Length = Annotated[T, Resume(run=True, run_effect="the learning rate follows the new length from here on")]
"""Not said where the learning rate is constant."""
Limit = Annotated[T, Resume(run=True, sweep=True, extendable=True)]
Rounds = Annotated[
    T, Resume(run=True, sweep=True, run_effect="rounding may differ", sweep_effect="rounding may differ")
]


def resolve(value: str | SecretRef, field: str) -> str:
    """Resolve a value that may be a secret reference; ``field`` is its dotted path in the configuration.

    Raises:
        ConfigError: the variable is not set, or the file cannot be read or is empty.
    """
    return value if isinstance(value, str) else _read(value, SecretRef.read, field)


def resolve_lines(value: SecretRef, field: str) -> tuple[str, ...]:
    """Resolve a reference whose lines are values; empty lines and those that start with # are left out.

    Raises:
        ConfigError: as ``resolve``.
    """
    return _read(value, SecretRef.read_lines, field)


def _read(value: SecretRef, read: Callable[[SecretRef], R], field: str) -> R:
    try:
        found = read(value)
    except KeyError as error:
        raise ConfigError([Problem(field, f"the environment variable {value.env} is not set")]) from error
    except OSError as error:
        raise ConfigError([Problem(field, f"the file {value.file} cannot be read: {error.strerror}")]) from error
    except (IndexError, UnicodeDecodeError):
        # Without its cause, which would show what the file holds.
        raise ConfigError([Problem(field, f"the file {value.file} does not start with a line of text")]) from None
    if not found:
        raise ConfigError([Problem(field, f"{value.env or value.file} is empty")])
    return found


class SecretRef(Spec):
    """A reference to a credential, read when it is needed; never the credential itself."""

    env: str | None = Field(None, description="name of an environment variable")
    file: str | None = Field(None, description="path of a file whose first line is the value")

    @model_validator(mode="after")
    def _one(self) -> SecretRef:
        if (self.env is None) == (self.file is None):
            msg = "write exactly one of env: NAME and file: PATH"
            raise ValueError(msg)
        return self

    def read(self) -> str:
        """Return the value.

        Raises:
            KeyError: the environment variable is not set.
            OSError: the file cannot be read.
        """
        return (self._text() if self.env is not None else self._text().splitlines()[0]).strip()

    def read_lines(self) -> tuple[str, ...]:
        """Return its lines as values of their own, without empty ones and comments.

        Raises: as ``read``.
        """
        stripped = (line.strip() for line in self._text().splitlines())
        return tuple(line for line in stripped if line and not line.startswith("#"))

    def _text(self) -> str:
        if self.env is not None:
            return os.environ[self.env]
        return Path(str(self.file)).expanduser().read_text(encoding="utf-8")


def frozen(value: Any) -> Any:
    """Return a list as a tuple: files and stored data have lists, and a section is hashed."""
    return tuple(value) if isinstance(value, list) else value


def absolute_references(data: Any) -> Any:
    """Return a section's plain data with absolute paths of referenced files: another process has another folder.

    One in a home folder stays so: the cluster's user has another one than that of a machine elsewhere.
    """
    if not isinstance(data, dict):
        return data
    if data.keys() == {"env", "file"}:
        file = data["file"]
        if file is None:
            return {"env": data["env"]}
        return {"file": file if file.startswith("~") else str(Path(file).absolute())}
    return {key: absolute_references(value) for key, value in data.items()}


def _no_credentials(value: str, info: ValidationInfo) -> str:
    if holds_credential(value) and not (info.context or {}).get("stored"):
        raise ValueError(ADVICE)
    return value


Uri = Annotated[str, AfterValidator(_no_credentials)]

UriOrRef = Uri | SecretRef
