"""Credentials: found inside text and refused or blacked out there, and read from where a reference says.

No message of this module repeats one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from raymlops.errors import ConfigError, Problem

if TYPE_CHECKING:
    from raymlops.config.base import SecretRef

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
