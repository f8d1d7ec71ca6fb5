"""Credentials: rejected or masked where text holds one, and read from where a reference points.

No message of this module repeats one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from raymlops.config.base import Spec
from raymlops.errors import ConfigError, Problem

ADVICE = "holds a credential; where the field takes it write {env: NAME} or {file: PATH}, and put the value there"

# user:password@ after a scheme. The password may hold / ? #, which makes urlsplit see none, so this looks
# for the last @ of the word; digits and a slash after the colon are a port and a path.
_USERINFO = re.compile(r"(?<=://)([^/?#\s:@]*):(?!\d+[/?#])([^\s]+)@")
_QUERY = re.compile(r"(?i)([?&;](?:password|passwd|pwd|secret|secret_key|access_key|token|api_key)=)([^&;\s]+)")


def holds_credential(text: str) -> bool:
    """Say whether a URL in the text carries a password, a key or a token."""
    return "://" in text and bool(_USERINFO.search(text) or _QUERY.search(text))


def redact(text: str) -> str:
    """Return the text with every such value as ``***``."""
    if not holds_credential(text):
        return text
    return _QUERY.sub(r"\1***", _USERINFO.sub(r"\1:***@", text))


def resolve(value: str | SecretRef, field: str) -> str:
    """Return a value that may be a reference; ``field`` is its dotted path in the configuration.

    Raises:
        ConfigError: the variable is not set, or the file cannot be read or is empty.
    """
    if isinstance(value, str):
        return value
    try:
        text = value.read()
    except KeyError as error:
        raise ConfigError([Problem(field, f"the environment variable {value.env} is not set")]) from error
    except OSError as error:
        raise ConfigError([Problem(field, f"the file {value.file} cannot be read: {error.strerror}")]) from error
    except (IndexError, UnicodeDecodeError):
        # Without its cause, which would show what the file holds.
        raise ConfigError([Problem(field, f"the file {value.file} does not start with a line of text")]) from None
    if not text:
        raise ConfigError([Problem(field, f"{value.env or value.file} is empty")])
    return text


class SecretRef(Spec):
    """Where a credential is to be read from when it is needed; never the credential itself."""

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
        if self.env is not None:
            return os.environ[self.env]
        return Path(str(self.file)).expanduser().read_text(encoding="utf-8").splitlines()[0].strip()


def _no_credentials(value: str) -> str:
    if holds_credential(value):
        raise ValueError(ADVICE)
    return value


Uri = Annotated[str, AfterValidator(_no_credentials)]

UriOrRef = Uri | SecretRef
