"""Credentials: rejected or masked where text holds one, and read from where a reference points.

No message of this module repeats one.
"""

from __future__ import annotations

import re

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
