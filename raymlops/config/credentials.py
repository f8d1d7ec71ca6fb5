"""Credentials: rejected or masked where text holds one, and read from where a reference points.

Owns what looks like one: the password of a URL, a value in its query whose name says so, and the tokens of well-known
services in any text. No message of this module repeats one.
"""

from __future__ import annotations

import re

ADVICE = "holds a credential; where the field takes it write {env: NAME} or {file: PATH}, and put the value there"

_MASK = "***"
_DATABASE = r"(?:postgres\w*|mysql|mariadb|mssql|oracle|redis|rediss|mongodb)(?:\+\w+)?://"
# The names that end so. Not `sslkey`, which is a file's path, nor `X-Amz-Credential`, which is no secret by itself.
_NAMES = (
    r"[\w.-]*?(?:password|passwd|passphrase|pwd|secret|token|signature|(?:api|access|account|secret|auth|shared)_?key"
    r"|[_.-]key|[_.-]pass|[_.-]auth|[_.-]sig|[_.-]jwt)|key|pass|auth|authorization|sig|jwt"
)
_URLS = (
    # user:password@ after a scheme. The password may hold / ? #, which makes urlsplit see none, so this looks for the
    # last @ of the word; digits and a slash after the colon are a port and a path, or a port at the end of the URL,
    (re.compile(r"(?<=://)([^/?#\s:@]*:)(?!\d+[/?#]|\d{1,5}[\"',;])[^\s]+(?=@)"), rf"\1{_MASK}"),
    # other than where a database's host would follow.
    (re.compile(rf"(?i)({_DATABASE}[^/?#\s:@]*:)\d+[/,;][^\s?#]*(?=@)"), rf"\1{_MASK}"),
    # A name alone is how services take a token over HTTP; a short one without a token's prefix is a user's name.
    (
        re.compile(r"(?i)(?<![a-z])(https?://)(?:(?:hf_|gh[opsur]_|glpat-|dapi|sk-)[\w-]+|[\w.~+=-]{20,})(?=@)"),
        rf"\1{_MASK}",
    ),
    (re.compile(rf"(?i)([?&;](?!(?:sort|partition)[_.-]?key=)(?:{_NAMES})=)[^&;\s]+"), rf"\1{_MASK}"),
    # ODBC's own connection string, as SQLAlchemy takes it.
    (re.compile(r"(?i)([?&]odbc_connect=)[^&\s]*(?:pwd|password)(?:=|%3d)[^&\s]+"), rf"\1{_MASK}"),
    (re.compile(r"(?i)(hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/)\S+"), rf"\1{_MASK}"),
)
_TOKENS = re.compile(
    r"""(?x)
    (?<![A-Za-z0-9_-])(?:
        hf_[A-Za-z0-9]{30,}                             # Hugging Face
      | gh[opsur]_[A-Za-z0-9]{36,} | github_pat_\w{40,} # GitHub
      | glpat-[\w-]{20,}                                # GitLab
      | sk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{32,}        # OpenAI, Anthropic
      | (?:AKIA|ASIA)[0-9A-Z]{16}                       # AWS
      | AIza[\w-]{35}                                   # Google
      | xox[abeprs]-[\w-]{20,}                          # Slack
      | dapi[0-9a-f]{32}                                # Databricks
      | rk_[0-9a-f]{12}_[\w-]{43}                       # our endpoints
      | eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}        # a JSON web token
    )(?![A-Za-z0-9_-])
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----[\s\S]*
    """
)


def holds_credential(text: str) -> bool:
    """Say whether a URL in the text carries a password, a key or a token, or whether a known token stands anywhere."""
    return bool(_TOKENS.search(text)) or ("://" in text and any(pattern.search(text) for pattern, _ in _URLS))


def redact(text: str) -> str:
    """Return the text with every such value as ``***``."""
    if "://" in text:
        for pattern, masked in _URLS:
            text = pattern.sub(masked, text)
    return _TOKENS.sub(_MASK, text)
